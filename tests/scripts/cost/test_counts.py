"""Counts read off the meta device against real modules, the real key-value cache, and PEFT's own counts."""

import pytest
import torch
from omegaconf import OmegaConf
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoModelForCausalLM

from scripts.cell.adapter import adapter_config
from scripts.cell.shapes import meta_model, model_config
from scripts.config import compose
from scripts.cost.architecture import Architecture
from scripts.cost.parameters import adapter
from tests.scripts.families import FAMILIES, model

METHODS = {
    "lora": ["method.r=2"],
    "mos": ["method.r=3"],
    "pure_sharing": [],
    "vera": ["method.r=4"],
    "tied_lora": ["method.r=4"],
    "prolora": ["method.r=4"],
}
LLAMA_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def real(family):
    return AutoModelForCausalLM.from_config(model_config(model(family)))


def composed(family, method):
    cfg = compose([f"method={method}", *METHODS[method]])
    cfg.model = model(family)
    return cfg


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_those_of_the_real_modules(family):
    network, counted = real(family), Architecture.of(meta_model(model(family)))
    linear = [m for name, m in network.named_modules() if isinstance(m, nn.Linear) and "lm_head" not in name]
    assert counted.linear_weights == sum(m.weight.numel() for m in linear)
    assert counted.weights == sum(p.numel() for p in network.parameters())  # tied ones are listed once
    assert (counted.vocab, counted.hidden, counted.blocks) == (96, 64, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_as_wide_as_the_real_cache_and_output_projection(family):
    network, counted = real(family).eval(), Architecture.of(meta_model(model(family)))
    cache = network(input_ids=torch.ones(1, 5, dtype=torch.long), use_cache=True).past_key_values
    widths = {layer.keys.shape[1] * layer.keys.shape[3] for layer in cache.layers}  # (b, heads, t, head)
    assert (widths, len(cache.layers)) == ({counted.kv}, counted.blocks)
    outputs = {m.in_features for name, m in network.named_modules() if name.endswith("o_proj")}
    assert outputs == {counted.attention}


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_are_as_wide_as_what_they_really_read(family):
    network, counted = real(family).eval(), Architecture.of(meta_model(model(family)))
    read = []
    for name, module in network.named_modules():
        if "norm" in type(module).__name__.lower() and ".layers." in f".{name}":
            module.register_forward_pre_hook(lambda module, args: read.append(args[0].numel()))
    network(input_ids=torch.ones(1, 5, dtype=torch.long))
    assert counted.norms == sum(read) / 5


@pytest.mark.parametrize(("family", "times"), [("Llama", 2), ("Phi 3", 2), ("Gemma 3", 2), ("StarCoder 2", 1)])
def test_inner_layers_write_twice_as_much_where_there_is_a_gate(family, times):
    counted = Architecture.of(meta_model(model(family)))
    assert (counted.inner, counted.inner_outputs) == (160, 160 * times)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_adapters_are_those_that_peft_builds_on_real_modules(family, method):
    cfg = composed(family, method)
    network = real(family)
    built = get_peft_model(network, adapter_config(cfg.method, network))
    layers = [m for m in built.modules() if isinstance(m, BaseTunerLayer)]
    counted = adapter(cfg)
    assert counted.trainable == sum(p.numel() for p in built.parameters() if p.requires_grad)
    assert counted.count == len(layers)
    assert counted.inputs == sum(layer.in_features for layer in layers)
    assert counted.outputs == sum(layer.out_features for layer in layers)


@pytest.mark.parametrize("method", ["lora", "mos", "vera", "prolora"])
def test_all_linear_is_llamas_seven_layers_in_the_same_order(method):
    """The paper adapts these; naming them or not must not change which modules are initialised, nor their order."""
    cfg, named = composed("Llama", method), composed("Llama", method)
    named.method.config.target_modules = LLAMA_LAYERS
    states = []
    for each in (cfg, named):
        torch.manual_seed(0)
        network = real("Llama")
        torch.manual_seed(1)
        states.append(get_peft_model(network, adapter_config(each.method, network)).state_dict())
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))
    assert [layer.name for layer in adapter(cfg).layers] == LLAMA_LAYERS
    assert adapter(cfg).count == 3 * 7


def test_a_layer_that_mos_does_not_fit_is_refused_and_not_left_out():
    """A table compares methods on the same layers. Only keys and values are too narrow for 64 shards."""
    cfg = composed("Llama", "mos")
    cfg.method.shards_per_vector = 64
    with pytest.raises(ValueError, match=r"64 does not divide out_features=32 of .*k_proj"):
        adapter(cfg)


def test_tied_lora_adapts_the_attention_inputs_and_nothing_else():
    assert [layer.name for layer in adapter(composed("Qwen3", "tied_lora")).layers] == ["q_proj", "k_proj", "v_proj"]
    assert [layer.name for layer in adapter(composed("Phi 3", "tied_lora")).layers] == ["qkv_proj"]


@pytest.mark.parametrize("inputs", [None, ["q_proj"], ["qkv_proj", "mlp.up_proj"]])
def test_attention_inputs_that_a_model_lacks_are_named_before_anything_is_adapted(inputs):
    cfg = composed("Phi 3", "tied_lora")
    cfg.model.attention_inputs = inputs or ["q_proj", "k_proj", "v_proj"]
    wrong = {None: "q_proj, k_proj, v_proj"}.get(inputs and tuple(inputs), (inputs or [""])[-1])
    with pytest.raises(ValueError, match=f"adapts {wrong}, but a phi3 model has only .*qkv_proj. Set model.attention"):
        adapter(cfg)


def test_attention_inputs_of_a_folder_are_given_on_the_command_line(tmp_path):
    real("Phi 3").save_pretrained(tmp_path)
    folder = ["model=local", f"model.source.path={tmp_path}", "method=tied_lora", "method.r=4"]
    cfg = compose([*folder, "+model.attention_inputs=[qkv_proj]"])
    assert OmegaConf.to_container(cfg.method.config.target_modules) == ["qkv_proj"]
    assert adapter(cfg).count == 3


def test_a_vanilla_row_adds_nothing():
    assert adapter(compose(["method=vanilla_chat"])) is None


def test_veras_frozen_matrices_are_counted_once():
    cfg = compose(["model=llama2_7b", "method=vera_r256"])
    assert adapter(cfg).frozen == 256 * 2 * 11008
    assert adapter(compose(["model=llama2_7b", "method=lora_r2"])).frozen == 0

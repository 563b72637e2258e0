"""Which layers of a base model a method adapts: by name, by a regular expression, or by PEFT's own list."""

import pytest
from omegaconf import OmegaConf
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from scripts.cell.adapter import adapter_config
from scripts.config import compose


@pytest.fixture(scope="module")
def network():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, num_hidden_layers=2, **sizes))


def method(targets, name="mos"):
    own = compose([f"method={name}", "method.r=2"]).method
    OmegaConf.set_struct(own, False)
    own.config.target_modules = targets
    return own


@pytest.mark.parametrize(
    ("targets", "adapted"),
    [
        (r"model\.layers\.1\..*_proj", 7),
        (r".*\.(q|k)_proj", 4),
        (None, 14),  # PEFT's list for Llama, which mos.MosModel extends
        (["q_proj", "layers.0.mlp.up_proj"], 3),
        ("all-linear", 14),
    ],
)
def test_layers_are_found_as_peft_finds_them(network, targets, adapted):
    config = adapter_config(method(targets), network)
    model = get_peft_model(network, config)
    try:
        assert len(model.base_model.targeted_module_names) == adapted
    finally:
        model.unload()


@pytest.mark.parametrize(
    ("targets", "missing"),
    [("q_proj", "q_proj"), (r".*\.c_attn", r".*\.c_attn"), (["q_proj", "c_attn", "wte"], "c_attn, wte")],
)
def test_targets_that_match_nothing_are_named_whole(network, targets, missing):
    with pytest.raises(ValueError) as caught:
        adapter_config(method(targets), network)
    said = str(caught.value)
    assert f"Method mos adapts {missing}, but a llama model has only down_proj, gate_proj" in said
    assert said.endswith("Name some of them in method.config.target_modules.")


def test_model_attention_inputs_is_named_where_the_method_asks_for_it(network):
    cfg = compose(["method=tied_lora", "method.r=2", "model=local", "+model.attention_inputs=[qkv_proj]"])
    with pytest.raises(ValueError, match=r"adapts qkv_proj, but .*\. Set model.attention_inputs to its query"):
        adapter_config(cfg.method, network)

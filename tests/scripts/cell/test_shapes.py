"""Any causal decoder that transformers knows is a base model, and one sentence says what is wrong with another."""

import pytest
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM

from scripts.cell.shapes import meta_model, model_config
from scripts.config import compose
from tests.scripts.families import FAMILIES, model

PUBLISHED = {
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama3_2_1b": 1_235_814_400,
    "phi3_mini": 3_821_079_552,
    "qwen3_0_6b": 596_049_920,
    "smollm2_135m": 134_515_008,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_meta_models_have_the_published_size_and_no_memory(name):
    network = meta_model(compose([f"model={name}"]).model)
    assert network.num_parameters() == PUBLISHED[name]
    assert {p.device.type for p in network.parameters()} == {"meta"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shapes_of_a_folder_are_those_of_the_model_that_was_saved_there(family, tmp_path):
    network = AutoModelForCausalLM.from_config(model_config(model(family)))
    network.save_pretrained(tmp_path)
    local = compose(["model=local", f"model.source.path={tmp_path}"]).model
    shapes = {name: p.shape for name, p in meta_model(local).named_parameters()}
    assert shapes == {name: p.shape for name, p in network.named_parameters()}
    assert type(model_config(local)) is type(network.config)


@pytest.mark.parametrize("method", ["lora_r2", "subset_selection", "vanilla_chat"])
def test_a_method_that_asks_for_the_number_of_blocks_gets_it_from_the_folder(method, tmp_path):
    AutoModelForCausalLM.from_config(model_config(model("Qwen3"))).save_pretrained(tmp_path)
    cfg = compose(["model=local", f"model.source.path={tmp_path}", f"method={method}"])
    assert OmegaConf.to_container(cfg.model, resolve=True)["architecture"]["num_hidden_layers"] == 3
    assert cfg.method.get("r") == {"lora_r2": 2, "subset_selection": 3}.get(method)


def test_a_local_model_without_a_path_composes():
    cfg = compose(["model=local"])
    assert OmegaConf.to_container(cfg, resolve=True)["model"]["architecture"] is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.architecture.model_type=qwen33"], "model_type=qwen33 is no causal language model .* mean qwen3?"),
        (["model.architecture.model_type=vit"], "model_type=vit is no causal language model"),
        (["model.architecture.model_type=null"], "model_type=None is no causal .* the model's config.json"),
        (["model.architecture.model_type=gemma3"], "gemma3 is more than a decoder of text: .* type gemma3_text"),
        (["model.architecture.model_type=llama4"], "llama4 is more than a decoder of text: .* type llama4_text"),
        (["+model.architecture.hiden_size=8"], "hiden_size is no argument of .*Qwen3Config. Did you mean hidden_size?"),
        (["+model.architecture.lora=8"], "architecture.lora is no argument of transformers' Qwen3Config"),
        (["model.architecture.hidden_size=wide"], "'qwen3_0_6b' cannot be: Field 'hidden_size' expected int"),
        (["model.architecture=null"], "model 'qwen3_0_6b' has no `architecture`.*; add them as in configs/model/"),
    ],
)
def test_a_wrong_architecture_is_one_sentence_with_its_value_and_the_way_out(overrides, message):
    with pytest.raises(ValueError, match=message) as caught:
        meta_model(compose(["model=qwen3_0_6b", *overrides]).model)
    assert "\n" not in str(caught.value)


def test_sizes_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match=r"hidden size \(4096\) is not a multiple of .* heads \(31\)"):
        meta_model(compose(["model=llama2_7b", "model.architecture.num_attention_heads=31"]).model)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"model.source.path={tmp_path} holds no config.json"):
        meta_model(compose(["model=local", f"model.source.path={tmp_path}"]).model)

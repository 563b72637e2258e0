"""export_lora(..., check=model): what it proves, what it refuses, and that it leaves the model alone."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import EXPERTS, HEADS, LLAMA_LIKE, hf, tiny
from torch import nn

from mos import MosConfig, ProloraConfig, export, export_lora

SETTINGS = {"r": 3, "init_weights": False, "target_modules": ["q_proj", "v_proj"]}


def saved(base, folder, config=None, **settings):
    torch.manual_seed(1)
    model = get_peft_model(base, config or MosConfig(**SETTINGS | settings))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "mos_" not in name:
            nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "settings",
    [{}, {"bias": "all"}, {"modules_to_save": ["lm_head", "norm"]}, {"modules_to_save": ["embed_tokens"]}],
)
def test_the_model_is_left_as_it_was(tmp_path, settings):
    base = tiny("Qwen2").train()
    before = {key: value.clone() for key, value in base.state_dict().items()}
    types = [type(module) for module in base.modules()]
    export_lora(saved(tiny("Qwen2"), tmp_path / "mos", **settings), tmp_path / "lora", check=base)
    assert (tmp_path / "lora" / "adapter_model.safetensors").is_file()
    assert [type(module) for module in base.modules()] == types
    assert base.training
    for key, value in base.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.filterwarnings("ignore:'all-linear' leaves out")
@pytest.mark.parametrize("name", ["T5", "BERT", "Llava"])
def test_other_kinds_of_models(tmp_path, name):
    folder = saved(tiny(name), tmp_path / "mos", target_modules="all-linear")
    export_lora(folder, tmp_path / "lora", check=tiny(name))
    assert (tmp_path / "lora").is_dir()


@pytest.mark.parametrize(
    "config", [ProloraConfig(r=4, init_weights=False), LoraConfig(init_lora_weights=False, target_modules=["q_proj"])]
)
def test_every_method(tmp_path, config):
    export_lora(saved(tiny("Llama"), tmp_path / "own", config), tmp_path / "lora", check=tiny("Llama"))
    assert (tmp_path / "lora").is_dir()


def test_a_wrong_export_is_refused_and_not_written(tmp_path, monkeypatch):
    folder = saved(tiny("Llama"), tmp_path / "mos")
    right = export.as_lora

    def without_one_layer(config, state):
        lora, tensors = right(config, state)
        return lora, {key: value for key, value in tensors.items() if "layers.1.self_attn.v_proj" not in key}

    monkeypatch.setattr(export, "as_lora", without_one_layer)
    with pytest.raises(ValueError, match=r"does not give the logits of .* on LlamaForCausalLM: they differ by up to"):
        export_lora(folder, tmp_path / "lora", check=tiny("Llama"))
    assert [path.name for path in tmp_path.iterdir()] == ["mos"]


def test_what_peft_rewrites_at_load_is_refused(tmp_path):
    """Dense blocks in a mixture: a file that does not name the base's type cannot be told from a Llama's."""

    def base():
        torch.manual_seed(0)
        config = hf.Qwen3MoeConfig(**LLAMA_LIKE | {"num_hidden_layers": 4}, **HEADS, **EXPERTS, mlp_only_layers=[0, 1])
        return hf.Qwen3MoeForCausalLM(config).eval()

    folder = saved(base(), tmp_path / "mos", target_modules=["gate_proj", "up_proj", "down_proj"])
    export_lora(folder, tmp_path / "right", check=base())
    path = folder / "adapter_config.json"
    older = {k: v for k, v in json.loads(path.read_text(encoding="utf-8")).items() if k != "base_model_type"}
    path.write_text(json.dumps(older), encoding="utf-8")
    with pytest.raises(ValueError, match="does not give the logits"):
        export_lora(folder, tmp_path / "lora", check=base())
    assert not (tmp_path / "lora").exists()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("Llama", {"init_weights": True}, "changes the logits by at most 0, which proves nothing in torch.float32"),
        ("ViT", {}, "check runs the model on tokens, but ViTForImageClassification reads pixel_values"),
    ],
)
def test_what_cannot_be_proved(tmp_path, name, settings, message):
    with pytest.raises(ValueError, match=message):
        export_lora(saved(tiny(name), tmp_path / "mos", **settings), tmp_path / "lora", check=tiny(name))
    assert not (tmp_path / "lora").exists()


def test_a_model_with_an_adapter(tmp_path):
    adapted = get_peft_model(tiny("Llama"), MosConfig(**SETTINGS)).get_base_model()
    with pytest.raises(ValueError, match="check needs the base model without adapters"):
        export_lora(saved(tiny("Llama"), tmp_path / "mos"), tmp_path / "lora", check=adapted)

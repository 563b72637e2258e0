"""PEFT's own VeRA: the paper's parameter count, and its export to a standard LoRA."""

import pytest
import torch
from accelerate import init_empty_weights
from peft import PeftModel, VeraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from mos import export_lora

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def trained_vera(base, **settings):
    """A VeRA adapter whose scaling vectors are not those it starts with."""
    torch.manual_seed(3)
    model = get_peft_model(base, VeraConfig(r=12, projection_prng_key=5, **settings)).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("targets", [ALL, ["q_proj", "v_proj"], ["o_proj", "q_proj"], ["gate_proj", "down_proj"]])
def test_exported_and_merged_give_the_same_logits(tiny_llama, ids, tmp_path, targets):
    model = trained_vera(tiny_llama(head_dim=10), target_modules=targets)  # o_proj reads 40 features, the others 32
    expected = model(ids).logits
    model.save_pretrained(tmp_path / "vera")
    export_lora(tmp_path / "vera", tmp_path / "lora")
    lora = PeftModel.from_pretrained(tiny_llama(head_dim=10), tmp_path / "lora")
    torch.testing.assert_close(lora(ids).logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.merge_and_unload()(ids).logits, expected, rtol=1e-5, atol=1e-5)


def test_unknown_input_width_is_refused(tiny_llama, tmp_path):
    trained_vera(tiny_llama(), target_modules=["q_proj", "down_proj", "k_proj"]).save_pretrained(tmp_path / "vera")
    with pytest.raises(ValueError, match=r"down_proj', which reads the output of gate_proj or up_proj"):
        export_lora(tmp_path / "vera", tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


@pytest.mark.filterwarnings("ignore:Specified to not save")
def test_file_without_the_frozen_factors_is_refused(tiny_llama, tmp_path):
    trained_vera(tiny_llama(), target_modules=ALL, save_projection=False).save_pretrained(tmp_path / "vera")
    with pytest.raises(ValueError, match="save_projection=True"):
        export_lora(tmp_path / "vera", tmp_path / "lora")


def test_4bit_base_trains_and_exports(tiny_llama_4bit, ids, tmp_path):
    model = trained_vera(tiny_llama_4bit(), target_modules=ALL).train()
    output = model(ids, labels=ids)
    output.loss.backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters() if p.requires_grad)
    model.save_pretrained(tmp_path / "vera")
    export_lora(tmp_path / "vera", tmp_path / "lora")
    lora = PeftModel.from_pretrained(tiny_llama_4bit(), tmp_path / "lora").train()
    torch.testing.assert_close(lora(ids).logits, output.logits, rtol=1e-5, atol=1e-5)


def test_parameters_of_the_paper():
    with init_empty_weights():
        base = LlamaForCausalLM(LlamaConfig())  # LLaMA2-7B is the default
    trainable, _ = get_peft_model(base, VeraConfig(r=256, target_modules=ALL)).get_nb_trainable_parameters()
    assert trainable == 1_417_216

"""MoS on models that accelerate spreads over devices, disk among them; "meta" stands for a second accelerator."""

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from peft import PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from transformers import AutoModelForCausalLM

from mos import MosConfig, ProloraConfig, TiedLoraConfig
from mos.common import private

CPU = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head", "model.layers.1"), "cpu")
CONFIG = {"r": 3, "init_weights": False}


def adapted(base, config=None):
    torch.manual_seed(1)
    return get_peft_model(base, config or MosConfig(**CONFIG)).eval()


def q_proj(model, block):
    return model.get_base_model().model.layers[block].self_attn.q_proj


@pytest.fixture
def on_disk(tiny_llama, tmp_path):
    """The base model with its first and last block on disk."""
    tiny_llama().save_pretrained(tmp_path / "base")
    device_map = CPU | {"model.layers.0": "disk", "model.layers.2": "disk"}

    def build():
        return AutoModelForCausalLM.from_pretrained(
            tmp_path / "base", device_map=device_map, offload_folder=tmp_path / "offloaded"
        ).eval()

    return build


@pytest.mark.parametrize("config", [MosConfig(**CONFIG), ProloraConfig(r=4, init_weights=False), TiedLoraConfig(r=6)])
def test_adapter_on_a_base_with_blocks_on_disk(on_disk, tiny_llama, ids, config):
    expected = adapted(tiny_llama(), config)
    model = adapted(on_disk(), config)
    assert not any(p.is_meta for name, p in model.named_parameters() if p.requires_grad)
    assert torch.equal(model(ids).logits, expected(ids).logits)
    for each in (model, expected):
        each.train()(ids, labels=ids).loss.backward()
    gradients = [{n: p.grad for n, p in each.named_parameters() if p.requires_grad} for each in (model, expected)]
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, msg=name)


def test_merging_into_a_base_with_blocks_on_disk(on_disk, ids):
    model = adapted(on_disk())
    expected = model(ids).logits
    torch.testing.assert_close(model.merge_and_unload()(ids).logits, expected)


def test_loading_onto_a_base_with_blocks_on_disk(on_disk, tiny_llama, ids, tmp_path):
    """PEFT's own way is refused before anything is changed, and the way that the sentence names works."""
    trained = adapted(tiny_llama())
    trained.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"'model.layers.0.*' is offloaded to disk, where PEFT loads only LoRA"):
        PeftModel.from_pretrained(on_disk(), tmp_path / "adapter", offload_folder=tmp_path / "more")
    model = get_peft_model(on_disk(), MosConfig(r=3)).eval()
    set_peft_model_state_dict(model, load_peft_weights(str(tmp_path / "adapter"), device="cpu"))
    assert torch.equal(model(ids).logits, trained(ids).logits)


def offload_blocks(model, folder):
    blocks = {f"base_model.model.model.layers.{i}": device for i, device in enumerate(("disk", "cpu", "disk"))}
    others = {f"base_model.model.{name}": device for name, device in CPU.items() if "layers" not in name}
    return dispatch_model(model, others | blocks, main_device="cpu", offload_dir=folder, force_hooks=True)


OFFLOADS = {
    "cpu": lambda model, folder: cpu_offload(model, torch.device("cpu")),
    "disk": lambda model, folder: disk_offload(model, folder, torch.device("cpu")),
    "some blocks": offload_blocks,
}


@pytest.mark.parametrize("offload", OFFLOADS)
def test_offloading_the_pools_too(tiny_llama, ids, tmp_path, offload):
    model = adapted(tiny_llama())
    expected = model(ids).logits
    OFFLOADS[offload](model, tmp_path)
    assert private.is_offloaded(q_proj(model, 0).mos_A.module("default"))
    assert torch.equal(model(ids).logits, expected)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected)
    with pytest.raises(RuntimeError, match="'default' are offloaded and cannot be trained"):
        model.train()(ids)


@pytest.mark.parametrize("training", [True, False])
def test_factors_are_on_the_device_of_the_block(tiny_llama, training):
    model = adapted(tiny_llama()).train(training)
    block = q_proj(model, 1).to("meta")
    assert block(torch.empty(2, 32, device="meta")).device.type == "meta"
    assert {t.device.type for t in block.factors("default")} == {"meta"}
    assert block.get_delta_weight("default").is_meta
    for other in (0, 2):
        assert not q_proj(model, other).mos_A["default"].is_meta
        assert torch.isfinite(q_proj(model, other)(torch.ones(2, 32))).all()

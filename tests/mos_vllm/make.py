"""Tiny models, and MoS adapters of many shapes as PEFT saves them."""

import json
import shutil
from pathlib import Path

import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import mos

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def tiny_llama(**changes) -> LlamaForCausalLM:
    """Heads of 32 are the smallest that vLLM serves on a CPU; the weights are large, so that texts differ."""
    sizes = {
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 8,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes | changes))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(4)
    return model.eval()


def quantize(base: Path, out: Path) -> Path:
    """Write the model in `base` with linear layers of 4 bits, in groups of 32, as vLLM reads `compressed-tensors`."""
    shutil.copytree(base, out)
    weights = load_file(base / "model.safetensors")
    for name in [name for name in weights if "_proj" in name]:
        stem, weight = name.removesuffix(".weight"), weights.pop(name)  # (o, h)
        groups = weight.unflatten(1, (-1, 32))
        scale = groups.abs().amax(2) / 7  # (o, h / 32)
        numbers = (groups / scale[..., None]).round().flatten(1).long() + 8  # (o, h), 1 to 15
        eight = numbers.unflatten(1, (-1, 8)) << torch.arange(0, 32, 4)
        weights[f"{stem}.weight_packed"] = eight.sum(2).to(torch.int32)  # beyond int32 it wraps around to the same bits
        weights[f"{stem}.weight_scale"] = scale
        weights[f"{stem}.weight_shape"] = torch.tensor(weight.shape)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    scheme = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": scheme}},
    }
    (out / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return out


def save_adapter(folder: Path, seed: int = 0, strength: float = 0.15, model=None, **settings) -> Path:
    """Save a MoS adapter with random pools for the tiny Llama; `settings` are those of mos.MosConfig."""
    defaults = {"target_modules": ALL, "task_type": "CAUSAL_LM", "shards_per_vector": 4, "r": 8, "equivalent_rank": 2}
    torch.manual_seed(seed)
    config = mos.MosConfig(**defaults | settings)
    model = get_peft_model(model or tiny_llama(), config)
    torch.manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".mos_A" in name:
                parameter.uniform_(-1, 1).div_(
                    (parameter.shape[1] * model.peft_config["default"].shards_per_vector) ** 0.5
                )
            elif ".mos_B" in name:
                parameter.normal_(0, strength)
    model.save_pretrained(str(folder))
    return folder

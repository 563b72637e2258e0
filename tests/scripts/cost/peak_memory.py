"""Measures the peak memory of real 4-bit training steps on this CPU: `python peak_memory.py '<json of sizes>'`.

It runs as a process of its own, because a process keeps only one peak, and what ran before counts in it. It prints
the bytes above the resident size before the model was loaded.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig


def status(field: str) -> int:
    """Bytes of VmRSS (resident now) or VmHWM (its peak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def load(folder: str, rank: int, checkpointing: bool) -> torch.nn.Module:
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    base = AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantization, dtype=torch.bfloat16)
    base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    model = get_peft_model(base, LoraConfig(r=rank, lora_alpha=16, lora_dropout=0.1, target_modules="all-linear"))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, tokens: torch.Tensor) -> None:
    """As `scripts.cell.training` does it: bf16 autocast, float32 loss."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=tokens).logits
        loss = cross_entropy(logits.flatten(0, 1).float(), tokens.flatten())
        del logits
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def main(architecture: dict, rank: int, batch: int, length: int, checkpointing: bool) -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(AutoConfig.for_model(**architecture)).to(torch.bfloat16).save_pretrained(
            folder
        )
        model = load(folder, rank, checkpointing)
        del model  # the libraries are loaded and warm now
        before = status("VmRSS")
        model = load(folder, rank, checkpointing)
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        for _ in range(2):
            step(model, optimizer, torch.randint(0, architecture["vocab_size"], (batch, length)))
        print(status("VmHWM") - before)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))

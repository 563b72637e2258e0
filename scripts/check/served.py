"""The engine with three kinds of adapters, in the process that has dequantized SmolLM2: run as a program.

A LoRA of a large rank, one of a small, and a MoS adapter, each from the folder from which an evaluation takes it.
"""

import tempfile
from pathlib import Path

import torch
from hydra.utils import instantiate
from peft import LoraConfig, PeftConfig, get_peft_model
from transformers import AutoModelForCausalLM

import mos
from eval.engines import Decoding, Request
from scripts.cell.base_model import dequantized_checkpoint
from scripts.cell.served import served
from scripts.config import compose

TARGETS = ["q_proj", "v_proj"]
CONFIGS: dict[str, PeftConfig] = {
    "LoRA 280": LoraConfig(r=280, target_modules=TARGETS, task_type="CAUSAL_LM"),  # the largest rank of the tables
    "LoRA 8": LoraConfig(r=8, target_modules=TARGETS, task_type="CAUSAL_LM"),
    "MoS 8": mos.MosConfig(r=8, equivalent_rank=2, target_modules=TARGETS, task_type="CAUSAL_LM"),
}
SAMPLES = 20
PROMPTS = ("def add(a, b):", "The capital of France is")


def main() -> None:
    cfg = compose(["profile=smol", "engine=vllm", "engine.max_model_len=256", "engine.max_num_seqs=64"])
    with tempfile.TemporaryDirectory() as folder:
        # On a GPU the base is dequantized anew: what that leaves in the GPU's memory is what the engine has to bear.
        cache = folder if torch.cuda.is_available() else cfg.cache_dir
        checkpoint = dequantized_checkpoint(cfg.model, cfg.trainer, cache)
        adapters = [_adapter(checkpoint, Path(folder, name), config) for name, config in CONFIGS.items()]
        engine = instantiate(cfg.engine, model=checkpoint, adapters=adapters)
        requests = [Request(prompt, adapter) for adapter in (*adapters, None) for prompt in PROMPTS]
        decoding = Decoding(max_new_tokens=16, samples=SAMPLES, temperature=0.1, top_p=0.95)
        answers = dict(engine.generate(requests, decoding))
        engine.close()
    if sorted(answers) != list(range(len(requests))) or any(len(texts) != SAMPLES for texts in answers.values()):
        raise SystemExit(f"{len(answers)} of {len(requests)} prompts came back with {SAMPLES} samples each")
    print(f"{len(requests)} prompts with {SAMPLES} samples each, {', '.join(CONFIGS)}")


def _adapter(checkpoint: Path, folder: Path, config: PeftConfig) -> Path:
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(checkpoint), config)
    model.save_pretrained(str(folder / "adapter"))
    return served(folder / "adapter", folder / "lora", "vllm")


if __name__ == "__main__":
    main()

"""The engine with a large and a small adapter, in the process that has dequantized SmolLM2: run as a program."""

import tempfile
from pathlib import Path

import torch
from hydra.utils import instantiate
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from eval.engines import Decoding, Request
from scripts.cell.base_model import dequantized_checkpoint
from scripts.config import compose

RANKS = (280, 8)  # of Tied LoRA, the largest of the tables, and of a common one
SAMPLES = 20
PROMPTS = ("def add(a, b):", "The capital of France is")


def main() -> None:
    cfg = compose(["profile=smol", "engine=vllm", "engine.max_model_len=256", "engine.max_num_seqs=64"])
    with tempfile.TemporaryDirectory() as folder:
        # On a GPU the base is dequantized anew: what that leaves in the GPU's memory is what the engine has to bear.
        cache = folder if torch.cuda.is_available() else cfg.cache_dir
        checkpoint = dequantized_checkpoint(cfg.model, cfg.trainer, cache)
        adapters = [_adapter(checkpoint, Path(folder), rank) for rank in RANKS]
        engine = instantiate(cfg.engine, model=checkpoint, adapters=adapters)
        requests = [Request(prompt, adapter) for adapter in (*adapters, None) for prompt in PROMPTS]
        decoding = Decoding(max_new_tokens=16, samples=SAMPLES, temperature=0.1, top_p=0.95)
        answers = dict(engine.generate(requests, decoding))
        engine.close()
    if sorted(answers) != list(range(len(requests))) or any(len(texts) != SAMPLES for texts in answers.values()):
        raise SystemExit(f"{len(answers)} of {len(requests)} prompts came back with {SAMPLES} samples each")
    print(f"{len(requests)} prompts with {SAMPLES} samples each, adapters of rank {' and '.join(map(str, RANKS))}")


def _adapter(checkpoint: Path, folder: Path, rank: int) -> Path:
    torch.manual_seed(rank)
    base = AutoModelForCausalLM.from_pretrained(checkpoint)
    model = get_peft_model(base, LoraConfig(r=rank, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    model.save_pretrained(str(folder / str(rank)))
    return folder / str(rank)


if __name__ == "__main__":
    main()

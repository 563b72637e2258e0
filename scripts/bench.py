"""Time and memory of MoS against PEFT's LoRA of the same rank, measured in turns in one process, as ratios of medians.

python -m scripts.bench                                    # one size, float32 and NF4
python -m scripts.bench --hidden 768 4096 --tokens 1x128 16x512 --shards 1 4 64
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, PreTrainedModel

import mos
from mos.base import LINEAR_LAYERS

METHODS = ("lora", "mos")
COLUMNS = ("train", "memory", "unmerged", "merged", "load")


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, {args.threads} threads, "
          f"torch {torch.__version__}; {args.blocks} blocks, MoS r={args.rank} e={args.equivalent_rank} against LoRA "
          f"r={args.rank}; MoS / LoRA, medians of {args.repeats}\n")  # fmt: skip
    print("| base | hidden | batch x length | l | " + " | ".join(COLUMNS) + " |")
    print("| --- " * (4 + len(COLUMNS)) + "|")
    for base, hidden, tokens, shards in itertools.product(args.base, args.hidden, args.tokens, args.shards):
        ratios = measure(args, base, hidden, tokens, shards)
        cells = (base, hidden, tokens, shards, *(f"{ratios[column]:.3f}" for column in COLUMNS))
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", nargs="+", choices=("float32", "nf4"), default=["float32", "nf4"])
    parser.add_argument("--hidden", nargs="+", type=int, default=[768], help="hidden size, a multiple of 64")
    parser.add_argument("--tokens", nargs="+", default=["4x128"], help="batch x length; 1x1 shows a layer's overhead")
    parser.add_argument("--shards", nargs="+", type=int, default=[4], help="l, shards per vector")
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--equivalent-rank", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peak", choices=METHODS, help=argparse.SUPPRESS)  # this process only measures memory
    args = parser.parse_args()
    if args.peak:
        print(json.dumps(peak_memory(args)))
        sys.exit()
    return args


def measure(args: argparse.Namespace, base: str, hidden: int, tokens: str, shards: int) -> dict[str, float]:
    """The ratios MoS / LoRA of one size, by column."""
    ids = token_ids(tokens)
    models = {method: adapted(args, method, base, hidden, shards) for method in METHODS}
    ratios = {"train": ratio({m: training_step(model, ids) for m, model in models.items()}, args.repeats)}
    unmerged = {m: inference(model.eval(), ids) for m, model in models.items()}
    ratios["unmerged"] = ratio(unmerged, args.repeats)
    with tempfile.TemporaryDirectory() as folder:
        ratios["load"] = ratio(loading(models, base, hidden, args, Path(folder)), args.repeats)
    for model in models.values():
        model.merge_adapter()
    ratios["merged"] = ratio(unmerged, args.repeats)
    peaks = [peak_in_own_process(args, method, base, hidden, tokens, shards) for method in ("mos", "lora")]
    return ratios | {"memory": peaks[0] / peaks[1]}


def token_ids(tokens: str) -> torch.Tensor:
    batch, length = map(int, tokens.split("x"))
    return torch.randint(512, (batch, length), generator=torch.Generator().manual_seed(0))


def adapted(args: argparse.Namespace, method: str, base: str, hidden: int, shards: int) -> PeftModel:
    """A random Llama with an adapter of the method, both the same each time."""
    torch.manual_seed(0)
    configs = {
        "lora": LoraConfig(r=args.rank, lora_alpha=16, lora_dropout=0.1, target_modules=LINEAR_LAYERS),
        "mos": mos.MosConfig(
            r=args.rank,
            equivalent_rank=args.equivalent_rank,
            shards_per_vector=shards,
            dropout=0.1,
            target_modules=LINEAR_LAYERS,
        ),
    }
    return cast(PeftModel, get_peft_model(base_model(base, hidden, args.blocks), configs[method]))


def base_model(base: str, hidden: int, blocks: int) -> PreTrainedModel:
    """A random Llama whose widths every l up to 64 divides."""
    shapes = LlamaConfig(
        vocab_size=512,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4 // 64 * 64,
        num_hidden_layers=blocks,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
    )
    model = cast(PreTrainedModel, AutoModelForCausalLM.from_config(shapes))
    if base == "float32":
        return model
    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "float32"}
    quantization = BitsAndBytesConfig.from_dict({"load_in_4bit": True} | nf4)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return cast(PreTrainedModel, AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantization))


def training_step(model: PeftModel, ids: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        model.train()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def inference(model: PeftModel, ids: torch.Tensor) -> Callable[[], None]:
    @torch.no_grad()
    def step() -> None:
        model(ids)

    return step


def loading(
    models: dict[str, PeftModel], base: str, hidden: int, args: argparse.Namespace, folder: Path
) -> dict[str, Callable[[], None]]:
    """Load each adapter as one more onto its model, and take it out again; a LoRA of MoS's size for equal bytes."""
    same_size = argparse.Namespace(**vars(args) | {"rank": args.equivalent_rank})
    saved = {"mos": models["mos"], "lora": adapted(same_size, "lora", base, hidden, 1)}
    for method, model in saved.items():
        model.save_pretrained(str(folder / method))

    def load(method: str) -> None:
        models[method].load_adapter(str(folder / method), "again")
        models[method].delete_adapter("again")

    return {method: partial(load, method) for method in METHODS}


def ratio(steps: dict[str, Callable[[], None]], repeats: int) -> float:
    """The median time of MoS over that of LoRA, the two taking turns after two unmeasured ones each."""
    times: dict[str, list[float]] = {method: [] for method in METHODS}
    for _ in range(repeats + 2):
        for method, step in steps.items():
            start = time.perf_counter()
            step()
            times[method].append(time.perf_counter() - start)
    lora, own = (statistics.median(times[method][2:]) for method in METHODS)
    return own / lora


def peak_in_own_process(
    args: argparse.Namespace, method: str, base: str, hidden: int, tokens: str, shards: int
) -> float:
    """The peak is of a whole process, so each method gets its own."""
    sizes: Iterable[object] = (
        "--peak", method, "--base", base, "--hidden", hidden, "--tokens", tokens, "--shards", shards, "--blocks",
        args.blocks, "--rank", args.rank, "--equivalent-rank", args.equivalent_rank, "--threads", args.threads,
    )  # fmt: skip
    command = [sys.executable, "-m", "scripts.bench", *map(str, sizes)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(json.loads(output.splitlines()[-1]))


def peak_memory(args: argparse.Namespace) -> int:
    """The peak resident memory in bytes of this process over three training steps (Linux)."""
    torch.set_num_threads(args.threads)
    step = training_step(
        adapted(args, args.peak, args.base[0], args.hidden[0], args.shards[0]), token_ids(args.tokens[0])
    )
    for _ in range(3):
        step()
    # not getrusage: its peak includes that of the parent, which this process was forked from
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()

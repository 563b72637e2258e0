"""Evaluation against lm-evaluation-harness, and adapters in one engine against merged checkpoints, as Markdown tables.

python -m scripts.bench_eval [data=...] [limit=64]

The harness runs the same checkpoint in the same vLLM with the same settings, prompts and decoding. Every run is a fresh
process. A rate counts from building the prompts to the scores; reading the data and loading the model come before.
"""

import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval import benchmarks
from eval.benchmarks import Item, mmlu
from eval.engines import Decoding
from eval.engines.vllm import resolve_dtype
from eval.evaluate import Benchmark, Job, Protocol, chosen_items, evaluate
from eval.predictions import read
from mos.base import LINEAR_LAYERS
from scripts import base_model, harness, runs
from scripts.errors import entry_point
from scripts.evaluation import load_benchmark

NAMES = ("gsm8k", "mmlu")
ITEMS = 64  # without limit=
ADAPTERS = 8
ROUNDS = 2  # of both sides, in turns

Report = dict[str, Any]  # {"load": seconds, <benchmark>: {"seconds": seconds, "answers": [...]}}


@entry_point
def main(cfg: DictConfig) -> None:
    cfg.limit = cfg.limit or ITEMS
    checkpoint = base_model.checkpoint(cfg.model, cfg.cache_dir)
    harness.environment(cfg.cache_dir)
    with tempfile.TemporaryDirectory(dir=cfg.cache_dir) as folder:
        print(f"{machine()}; {cfg.model.name}, {resolve_dtype(cfg.engine.dtype)}, {cfg.limit} items a benchmark\n")
        print(against_harness(cfg, checkpoint, Path(folder).resolve()), end="\n\n", flush=True)
        print(against_merged(cfg, checkpoint, Path(folder).resolve()))


def machine() -> str:
    hardware = runs.hardware()
    return f"{hardware['cpu']}, {hardware['cores']} cores, GPU {hardware['gpu'] or 'none'}"


def against_harness(cfg: DictConfig, checkpoint: Path, folder: Path) -> str:
    """A table of items per second, ours and the harness's."""
    ours, theirs = [], []
    for turn in range(ROUNDS):
        ours.append(in_own_process(cfg, checkpoint, [], folder / f"ours{turn}"))
        theirs.append(by_harness(cfg, checkpoint, folder))
    rows = ["| benchmark | ours, items/s | harness, items/s | ratio | same answers |", "| --- " * 5 + "|"]
    for name in NAMES:
        rate, other = (cfg.limit * ROUNDS / sum(report[name]["seconds"] for report in side) for side in (ours, theirs))
        same = agreeing(name, ours[0][name]["answers"], theirs[0][name]["answers"])
        rows.append(f"| {name} | {rate:.2f} | {other:.2f} | {rate / other:.2f} | {same} of {cfg.limit} |")
    return "\n".join(rows)


def agreeing(name: str, ours: Sequence[Any], theirs: Sequence[Any]) -> int:
    """How many answers are the same: whole texts, or letters; the harness has a log-likelihood for each letter."""
    if name == "mmlu":
        best = [max(zip(mmlu.LETTERS, item, strict=True), key=lambda pair: pair[1][0][0])[0] for item in theirs]
        return sum(mmlu.parse(logits) == letter for logits, letter in zip(ours, best, strict=True))
    return sum(text == item[0][0] for text, item in zip(ours, theirs, strict=True))


def against_merged(cfg: DictConfig, checkpoint: Path, folder: Path) -> str:
    """A table of the seconds that eight adapters take in one engine, and as eight merged checkpoints."""
    adapters = [random_adapter(checkpoint, folder / f"adapter{seed}", seed) for seed in range(ADAPTERS)]
    started = time.monotonic()
    together = in_own_process(cfg, checkpoint, adapters, folder / "together")
    rows = [
        "| route | merging, s | loading, s | answering, s | in all, s |",
        "| --- " * 5 + "|",
        row(f"{ADAPTERS} adapters, one engine", [together], 0.0, ours := time.monotonic() - started),
    ]
    reports, merging, started = [], 0.0, time.monotonic()
    for adapter in adapters:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(dir=folder) as name:
            merged = merge(checkpoint, adapter, Path(name))
            merging += time.monotonic() - begun
            reports.append(in_own_process(cfg, merged, [], folder / f"merged-{adapter.name}"))
    rows.append(row(f"{ADAPTERS} merged checkpoints", reports, merging, whole := time.monotonic() - started))
    return "\n".join([*rows, "", f"Ratio: {whole / ours:.2f}, without merging {(whole - merging) / ours:.2f}."])


def row(route: str, reports: Sequence[Report], merging: float, whole: float) -> str:
    """`whole` also has what a process needs before it loads a model."""
    loading = sum(report["load"] for report in reports)
    answering = sum(report[name]["seconds"] for report in reports for name in NAMES)
    return f"| {route} | {merging:.1f} | {loading:.1f} | {answering:.1f} | {whole:.1f} |"


def in_own_process(cfg: DictConfig, checkpoint: Path, adapters: Sequence[Path], folder: Path) -> Report:
    """`measure`, with nothing cached."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, cfg, checkpoint, adapters, folder).result()


def measure(cfg: DictConfig, checkpoint: Path, adapters: Sequence[Path], folder: Path) -> Report:
    """Evaluate the adapters, or the checkpoint where there are none, in one engine; answers are of the first."""
    started = time.monotonic()
    engine = instantiate(cfg.engine, model=checkpoint, adapters=list(adapters))
    report: Report = {"load": time.monotonic() - started}
    protocol = Protocol(checkpoint.name, {}, limit=cfg.limit)
    for name in NAMES:
        benchmark = load_benchmark(cfg, name)
        jobs = [Job(folder / str(i), adapter, False, (name,)) for i, adapter in enumerate(adapters or [None])]
        started = time.monotonic()
        result, *_ = evaluate(jobs, {name: benchmark}, protocol, engine.tokenizer, lambda: engine)
        seconds = time.monotonic() - started
        rows = read(result / "predictions.jsonl")
        answers = [rows[item.id]["outputs"][0] for item in chosen(benchmark, engine.tokenizer, cfg.limit)]
        report[name] = {"seconds": seconds, "answers": answers}
    return report


def by_harness(cfg: DictConfig, checkpoint: Path, folder: Path) -> Report:
    """The same by the harness."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tasks = []
    for name in NAMES:
        benchmark = load_benchmark(cfg, name)
        items = chosen(benchmark, tokenizer, cfg.limit)
        tasks.append(str(harness.write_task(folder / f"{name}.yaml", items, decoding(benchmark))))
    done = subprocess.run(
        [harness.environment(cfg.cache_dir) / "python", "-m", "scripts.harness_driver"],
        input=json.dumps({"model": model_arguments(cfg, checkpoint), "tasks": tasks}),
        env=harness.variables(cfg.engine.cpu_kv_cache_gib, cfg.engine.cpu_threads),
        cwd=runs.ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def model_arguments(cfg: DictConfig, checkpoint: Path) -> dict[str, Any]:
    """What our engine gives to vLLM, as arguments of the harness's."""
    same = ("max_model_len", "max_num_seqs", "gpu_memory_utilization")
    return {
        "pretrained": str(checkpoint),
        "dtype": resolve_dtype(cfg.engine.dtype),
        **{name: cfg.engine[name] for name in same},
        "enable_prefix_caching": True,
        "enforce_eager": not torch.cuda.is_available(),
        "generation_config": "vllm",
    }


def chosen(benchmark: Benchmark, tokenizer: Any, limit: int) -> list[Item]:
    settings = benchmarks.settings(benchmark.config, "authors", chat=False)
    return chosen_items(benchmark, tokenizer, settings, limit)


def decoding(benchmark: Benchmark) -> Decoding | None:
    if benchmark.config.get("letters"):
        return None
    stops = benchmarks.settings(benchmark.config, "authors", chat=False).stops
    return Decoding(benchmark.config["max_new_tokens"], stops)


def random_adapter(checkpoint: Path, folder: Path, seed: int) -> Path:
    """A LoRA of rank 8 on all linear layers whose update is small enough that the model still writes text."""
    torch.manual_seed(seed)
    base: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    adapted = get_peft_model(base, LoraConfig(r=8, target_modules=LINEAR_LAYERS, task_type="CAUSAL_LM"))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=1e-3)
    adapted.save_pretrained(str(folder))
    return folder


def merge(checkpoint: Path, adapter: Path, folder: Path) -> Path:
    base: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    merged: Any = PeftModel.from_pretrained(base, str(adapter))
    merged.merge_and_unload().save_pretrained(folder)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()

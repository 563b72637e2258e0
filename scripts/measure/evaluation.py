"""Our evaluation against lm-evaluation-harness, and adapters in one engine against merged checkpoints."""

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Self

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval import benchmarks
from eval.benchmarks import Item
from eval.engines import Decoding, resolve_dtype
from eval.letters import best
from eval.predictions import read
from eval.session import Benchmark, Conditions, Job, chosen_items, evaluate
from mos.common.model import LINEAR_LAYERS
from scripts.cell.evaluation import load_benchmark
from scripts.cell.process import worker_pool
from scripts.cell.provenance import hardware
from scripts.config import ROOT
from scripts.measure import harness

ITEMS = 64  # without limit=
ADAPTERS = 8
ROUNDS = 2  # per order of loading; a machine's speed drifts, so each round gives a ratio of its own

Report = dict[str, Any]  # {"seconds": seconds, "answers": [...]}


def machine() -> str:
    found = hardware()
    return f"{found['cpu']}, {found['cores']} cores, GPU {found['gpu'] or 'none'}"


def against_harness(cfg: DictConfig, checkpoint: Path, folder: Path) -> str:
    """A table of items per second, ours and the harness's: medians over the rounds, of the ratios too."""
    make: dict[str, Callable[[], Ours | Harness]] = {
        "ours": lambda: Ours(cfg, checkpoint, [], folder),
        "harness": lambda: Harness(cfg, checkpoint, folder),
    }
    reports: dict[str, list[dict[str, Report]]] = {name: [] for name in cfg.benchmark}
    for first, second in (("ours", "harness"), ("harness", "ours")):
        with make[first]() as one, make[second]() as other:
            sides = {first: one, second: other}
            for name in cfg.benchmark:
                turns = [in_turn(sides, name, backwards=number % 2 == 1) for number in range(1 + ROUNDS)]
                reports[name] += turns[1:]
    rows = ["| benchmark | ours, items/s | harness, items/s | ratio | same answers |", "| --- " * 5 + "|"]
    for name, turns in reports.items():
        rates = (cfg.limit / median(turn[side]["seconds"] for turn in turns) for side in ("ours", "harness"))
        ratios = [turn["harness"]["seconds"] / turn["ours"]["seconds"] for turn in turns]
        same = agreeing(*(turns[0][side]["answers"] for side in ("ours", "harness")))
        spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        cells = (name, *(f"{rate:.2f}" for rate in rates), spread, f"{same} of {cfg.limit}")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def in_turn(sides: Mapping[str, "Ours | Harness"], name: str, backwards: bool) -> dict[str, Report]:
    """Both sides' answers to a benchmark, one after the other."""
    return {side: sides[side].answer(name) for side in sorted(sides, reverse=backwards)}


def agreeing(ours: Sequence[Any], theirs: Sequence[Any]) -> int:
    """How many answers are the same: whole texts, or letters. The harness has a log-likelihood for each letter."""
    return sum(_same(answer, other) for answer, other in zip(ours, theirs, strict=True))


def _same(answer: Any, other: Sequence[Any]) -> bool:
    if isinstance(answer, str):
        return bool(answer == other[0][0])
    likelihoods = [choice[0][0] for choice in other]
    return best(answer) == list(answer)[likelihoods.index(max(likelihoods))]


def against_merged(cfg: DictConfig, checkpoint: Path, folder: Path) -> str:
    """A table of the seconds that eight adapters take in one engine, and as eight merged checkpoints."""
    adapters = [random_adapter(checkpoint, folder / f"adapter{seed}", seed) for seed in range(ADAPTERS)]
    started = time.monotonic()
    together = answered(cfg, checkpoint, adapters, folder)
    rows = [
        "| route | merging, s | loading, s | answering, s | in all, s |",
        "| --- " * 5 + "|",
        row(f"{ADAPTERS} adapters, one engine", [together], 0.0, ours := time.monotonic() - started),
    ]
    seconds, merging, started = [], 0.0, time.monotonic()
    for adapter in adapters:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(dir=folder) as name:
            merged = merge(checkpoint, adapter, Path(name))
            merging += time.monotonic() - begun
            seconds.append(answered(cfg, merged, [], folder))
    rows.append(row(f"{ADAPTERS} merged checkpoints", seconds, merging, whole := time.monotonic() - started))
    return "\n".join([*rows, "", f"Ratio: {whole / ours:.2f}, without merging {(whole - merging) / ours:.2f}."])


def answered(cfg: DictConfig, checkpoint: Path, adapters: Sequence[Path], folder: Path) -> tuple[float, float]:
    """The seconds of loading and of answering all benchmarks, in an engine of its own."""
    with Ours(cfg, checkpoint, adapters, folder) as ours:
        return ours.load, sum(ours.answer(name)["seconds"] for name in cfg.benchmark)


def row(route: str, seconds: Sequence[tuple[float, float]], merging: float, whole: float) -> str:
    """`whole` also has what a process needs before it loads a model."""
    loading, answering = map(sum, zip(*seconds, strict=True))
    return f"| {route} | {merging:.1f} | {loading:.1f} | {answering:.1f} | {whole:.1f} |"


class Ours:
    """Our evaluation of the adapters, or of the checkpoint where there are none, in a process of its own.

    load: the seconds that loading took
    """

    def __init__(self, cfg: DictConfig, checkpoint: Path, adapters: Sequence[Path], folder: Path) -> None:
        self._order = cfg, checkpoint, adapters, folder
        self._process = worker_pool(1)
        self.load: float = self._process.submit(_loaded, cfg, checkpoint, adapters).result()

    def __enter__(self) -> Self:
        return self

    def answer(self, name: str) -> Report:
        """The answers are of the first adapter."""
        return self._process.submit(_answer, *self._order, name).result()

    def __exit__(self, *exception: object) -> None:
        self._process.shutdown()


_engines: list[Any] = []  # the one of this process


def _loaded(cfg: DictConfig, checkpoint: Path, adapters: Sequence[Path]) -> float:
    started = time.monotonic()
    _engines.append(instantiate(cfg.engine, model=checkpoint, adapters=list(adapters)))
    return time.monotonic() - started


def _answer(cfg: DictConfig, checkpoint: Path, adapters: Sequence[Path], folder: Path, name: str) -> Report:
    (engine,) = _engines
    engine.llm.reset_prefix_cache()
    conditions = Conditions(checkpoint.name, {}, limit=cfg.limit)
    benchmark = load_benchmark(cfg, name)
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        jobs = [Job(Path(fresh, str(i)), adapter, False, (name,)) for i, adapter in enumerate(adapters or [None])]
        started = time.monotonic()
        result, *_ = evaluate(jobs, {name: benchmark}, conditions, engine.tokenizer, lambda: engine)
        seconds = time.monotonic() - started
        rows = read(result / "predictions.jsonl")
    items = chosen(benchmark, engine.tokenizer, cfg.limit)
    return {"seconds": seconds, "answers": [rows[item.id]["outputs"][0] for item in items]}


class Harness:
    """The harness's evaluation of the checkpoint, in a process of its own."""

    def __init__(self, cfg: DictConfig, checkpoint: Path, folder: Path) -> None:
        tokenizer, self._tasks = AutoTokenizer.from_pretrained(checkpoint), {}
        for name in cfg.benchmark:
            benchmark = load_benchmark(cfg, name)
            items = chosen(benchmark, tokenizer, cfg.limit)
            self._tasks[name] = harness.write_task(folder / f"{name}.yaml", items, asked(benchmark))
        self._process = subprocess.Popen(
            [harness.environment(cfg.cache_dir) / "python", "-m", "scripts.measure.harness_driver"],
            env=harness.variables(cfg.engine.cpu_kv_cache_gib, cfg.engine.cpu_threads),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        self._ask(json.dumps(model_arguments(cfg, checkpoint)))

    def __enter__(self) -> Self:
        return self

    def answer(self, name: str) -> Report:
        return self._ask(str(self._tasks[name]))

    def _ask(self, line: str) -> Report:
        """Send a line, and read up to the answer; libraries print to the same stream."""
        assert self._process.stdin and self._process.stdout
        print(line, file=self._process.stdin, flush=True)
        for said in self._process.stdout:
            if said.startswith("{"):
                return dict(json.loads(said))
        raise RuntimeError(f"The harness ended with {self._process.wait()} at {line}; its messages are above.")

    def __exit__(self, *exception: object) -> None:
        self._process.communicate()  # the end of its input is the end of its work


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
    prompting = benchmarks.prompting(benchmark.config, "authors", chat=False)
    return chosen_items(benchmark, tokenizer, prompting, limit)


def asked(benchmark: Benchmark) -> Decoding | tuple[str, ...]:
    """How a benchmark's answers are generated, or the letters that are scored."""
    prompting = benchmarks.prompting(benchmark.config, "authors", chat=False)
    return prompting.letters or Decoding(benchmark.config["max_new_tokens"], prompting.stops)


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

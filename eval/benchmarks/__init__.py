"""The five benchmarks, one module each, all of one shape.

items(raw, tokenizer, settings) -> list[Item]   the prompts, byte for byte those of docs/protocol.md, Benchmarks
parse(output, item) -> prediction               from what the model wrote, already cut at the stops
score(item, predictions) -> Verdict             one prediction per sample; percent, keyed by table column

What can be said as data (shots, stops, lengths, columns, averages) stands in configs/benchmark/<name>.yaml.
"""

import difflib
import importlib
import string
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from types import ModuleType
from typing import Any

NAMES = ("mmlu", "bbh", "gsm8k", "tydiqa", "humaneval")
VARIANTS = ("authors", "tulu")


@dataclass(frozen=True)
class Settings:
    """How a benchmark is put to a model: its yaml, the evaluation's variant, the run's chat format."""

    chat: bool
    variant: str = "authors"  # authors | tulu
    stops: tuple[str, ...] = ()
    shots: int = 0
    max_prompt_tokens: int | None = None  # longer prompts lose shots
    max_context_tokens: int | None = None  # longer passages are cut
    allow_unprotected: bool = False  # run programs even where nothing shuts them in


@dataclass(frozen=True)
class Item:
    """One question. `prompt` is the whole text without `<s>`; `gold` is JSON; `extra` is what scoring needs besides."""

    id: str
    task: str  # subject, sub-task or language
    prompt: str
    gold: Any
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """Percent per table column, and one remark per sample where there is something to say."""

    scores: dict[str, float]
    notes: tuple[str, ...] = ()


def module(name: str) -> ModuleType:
    """The module of a benchmark. Raises ValueError for an unknown name, with the nearest known one."""
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"There is no benchmark '{name}'; there are {', '.join(NAMES)}.{hint}")
    return importlib.import_module(f"eval.benchmarks.{name}")


def settings(config: dict[str, Any], variant: str, chat: bool) -> Settings:
    """The settings that a benchmark's yaml gives for one variant and chat format. Raises ValueError on the variant."""
    if variant not in VARIANTS:
        raise ValueError(f"evaluation.variant is '{variant}'; choose one of {', '.join(VARIANTS)}.")
    return Settings(
        chat=chat,
        variant=variant,
        stops=tuple(config["stops"]["chat" if chat else "nochat"][variant]),
        shots=config.get("shots", 0),
        max_prompt_tokens=config.get("max_prompt_tokens"),
        max_context_tokens=config.get("max_context_tokens"),
        allow_unprotected=config.get("allow_unprotected", False),
    )


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop that occurs in it; nothing else is touched."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


def predict(name: str, item: Item, output: Any, stops: Sequence[str]) -> Any:
    """The prediction in what a model gave for an item: a text, or the logits of the letters."""
    return module(name).parse(cut(output, stops) if isinstance(output, str) else output, item)


def matches(prediction: str, gold: str) -> bool:
    """Equal after lower-casing and deleting ASCII punctuation; inner spaces count."""
    return _bare(prediction) == _bare(gold)


def _bare(text: str) -> str:
    return text.lower().translate(str.maketrans("", "", string.punctuation))


def spread(items: Sequence[Item], limit: int | None) -> list[Item]:
    """At most `limit` items, as evenly over the tasks as their sizes allow and evenly within each; order is kept.

    Raises ValueError if limit is below 1.
    """
    if limit is None or limit >= len(items):
        return list(items)
    if limit < 1:
        raise ValueError(f"limit={limit} leaves no item; use at least 1, or null for all.")
    by_task: dict[str, list[int]] = defaultdict(list)
    for position, item in enumerate(items):
        by_task[item.task].append(position)
    quotas = _quotas([len(positions) for positions in by_task.values()], limit)
    chosen = [
        positions[i]
        for positions, quota in zip(by_task.values(), quotas, strict=True)
        for i in even(len(positions), quota)
    ]
    return [items[position] for position in sorted(chosen)]


def even(size: int, count: int) -> list[int]:
    """`count` different indices below `size`, evenly spaced."""
    return [i * size // count for i in range(count)]


def _quotas(sizes: list[int], limit: int) -> list[int]:
    """How many of `limit` each task gives: one more round to all that still have some, the last round to a spread."""
    quotas = [0] * len(sizes)
    while limit:
        open_tasks = [i for i, size in enumerate(sizes) if quotas[i] < size]
        for i in even(len(open_tasks), min(limit, len(open_tasks))):
            quotas[open_tasks[i]] += 1
            limit -= 1
    return quotas


def aggregate(rows: Iterable[dict[str, Any]], average: str) -> dict[str, float]:
    """Percent per column over rows of {"task", "scores"}: the mean over all items, or over the means of the tasks.

    Raises ValueError without rows or for another average than `items` and `tasks`.
    """
    tasks: dict[str, list[dict[str, float]]] = defaultdict(list)
    for row in rows:
        tasks[row["task"] if average == "tasks" else ""].append(row["scores"])
    if not tasks:
        raise ValueError("There are no predictions to average.")
    if average not in ("items", "tasks"):
        raise ValueError(f"average is '{average}'; choose 'items' or 'tasks'.")
    means = [_mean(scores) for scores in tasks.values()]
    return _mean(means)


def _mean(scores: list[dict[str, float]]) -> dict[str, float]:
    return {column: fmean(score[column] for score in scores) for column in scores[0]}

"""Benchmarks: one yaml each in configs/benchmark, and a module of this package for prompts, parsing and scoring.

A module has

    load(files) -> raw                             the original files, by role; len(raw) is the number of items
    items(raw, tokenizer, prompting) -> [Item]     prompts, byte for byte as docs/protocol.md describes them
    parse(output, item) -> prediction              from the model's text, cut at the stops, or from the letters' logits
    score(item, predictions) -> Verdict            percent, one number per entry of METRICS
    METRICS                                        what the numbers are, in the order of the yaml's `columns`

Several yamls may name one module. What can be said as data (shots, stops, lengths, columns, averages) is in the yaml.
"""

import difflib
import importlib
import importlib.util
import logging
import os
import string
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

from data_prep.sources import Files

log = logging.getLogger(__name__)

CONFIGS = Path(os.environ.get("MOS_CONFIGS") or Path(__file__).parents[2] / "configs") / "benchmark"
VARIANTS = ("authors", "tulu")
AVERAGES = ("items", "tasks")
NEEDED = ("name", "version", "title", "module", "columns", "average", "published", "source")
OPTIONAL = (  # letters, or stops and max_new_tokens, are needed too: see `check`
    *("letters", "shots", "stops", "max_new_tokens", "samples", "temperature", "top_p"),
    *("max_prompt_tokens", "max_context_tokens", "programs", "allow_unprotected"),
)
LEAST = {"shots": 0, "max_new_tokens": 1, "samples": 1, "max_prompt_tokens": 1, "max_context_tokens": 1}
# nothing reads these where letters are scored
GENERATING = ("max_new_tokens", "stops", "samples", "temperature", "top_p")

Config = Mapping[str, Any]  # the resolved content of configs/benchmark/<name>.yaml


@dataclass(frozen=True)
class Prompting:
    """How a benchmark is put to a model: from its yaml, the evaluation's variant and the run's chat format."""

    chat: bool
    variant: str = "authors"  # one of VARIANTS
    stops: tuple[str, ...] = ()
    shots: int = 0
    letters: tuple[str, ...] = ()  # of the choices, where the answer is a letter
    max_prompt_tokens: int | None = None  # longer prompts lose shots
    max_context_tokens: int | None = None  # longer passages are cut
    allow_unprotected: bool = False  # run programs even where nothing shuts them in


@dataclass(frozen=True)
class Item:
    """One question. `prompt` is the whole text without `<s>`; `gold` is JSON, and so is `extra`: what scoring needs."""

    id: str
    task: str  # the part of the benchmark it belongs to: a subject, a sub-task, a language
    prompt: str
    gold: Any
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """Percent per entry of the module's METRICS, and one remark per sample where there is something to say."""

    scores: tuple[float, ...]
    notes: tuple[str, ...] = ()


def names() -> list[str]:
    """The benchmarks that have a yaml, sorted."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def check_name(name: str, known: Sequence[str] | None = None) -> None:
    """Raise ValueError, with the nearest name, if `name` is not among `known` (None: those that have a yaml)."""
    known = names() if known is None else known
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"There is no benchmark '{name}'; there are {', '.join(known)}.{hint}")


def module(config: Config) -> ModuleType:
    """The module that a benchmark's yaml names. Raises ValueError if there is none of this name."""
    name = config["module"]
    path = f"{__name__}.{name}"
    if importlib.util.find_spec(path) is None:
        raise ValueError(
            f"configs/benchmark/{config['name']}.yaml names the module '{name}', but there is no "
            f"eval/benchmarks/{name}.py."
        )
    return importlib.import_module(path)


def check(config: Config) -> None:
    """Raise ValueError, in one sentence, for a yaml with which a table would fail later."""
    where = f"configs/benchmark/{config.get('name', '?')}.yaml"
    if missing := [key for key in NEEDED if config.get(key) is None]:
        raise ValueError(f"{where} lacks {', '.join(missing)}.")
    if unknown := [key for key in config if key not in NEEDED + OPTIONAL]:
        near = difflib.get_close_matches(unknown[0], NEEDED + OPTIONAL, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"{where} has the key '{unknown[0]}', which nothing reads.{hint}")
    if not isinstance(config["version"], int) or config["version"] < 1:
        raise ValueError(f"{where}: version is {config['version']!r}; use a whole number from 1.")
    if config["average"] not in AVERAGES:
        raise ValueError(f"{where}: average is '{config['average']}'; choose one of {', '.join(AVERAGES)}.")
    metrics = module(config).METRICS
    if len(config["columns"]) != len(metrics):
        raise ValueError(
            f"{where}: columns are {', '.join(config['columns'])}, but eval/benchmarks/{config['module']}.py gives "
            f"{len(metrics)} score(s) per item ({', '.join(metrics)}); name one column for each."
        )
    _check_answers(config, where)
    _check_values(config)


def _check_answers(config: Config, where: str) -> None:
    letters = config.get("letters")
    if letters is None and not (config.get("max_new_tokens") and config.get("stops")):
        raise ValueError(f"{where} needs letters, or max_new_tokens and stops for answers that are generated.")
    if unread := [key for key in GENERATING if letters is not None and config.get(key) is not None]:
        raise ValueError(f"{where} has letters, so nothing reads its {unread[0]}; leave one of the two out.")
    if letters is not None and (len(set(letters)) != len(letters) or len(letters) < 2):
        raise ValueError(f"{where}: letters are {letters}; at least two different ones are needed.")


def _check_values(config: Config) -> None:
    """The command line may have set them."""
    name = f"benchmark.{config['name']}"
    if type(allowed := config.get("allow_unprotected", False)) is not bool:  # the text "no" would count as a yes
        raise ValueError(f"{name}.allow_unprotected={allowed} is refused: use true or false.")
    for key, least in LEAST.items():
        value = config.get(key, least)
        if (value is not None or key == "samples") and (type(value) is not int or value < least):
            raise ValueError(f"{name}.{key}={value} is refused: use a whole number from {least}.")
    temperature, top_p, samples = config.get("temperature", 0.0), config.get("top_p", 1.0), config.get("samples", 1)
    if not isinstance(temperature, int | float) or not temperature >= 0:
        raise ValueError(f"{name}.temperature={temperature} is refused: use a number from 0.")
    if not isinstance(top_p, int | float) or not 0 < top_p <= 1:
        raise ValueError(f"{name}.top_p={top_p} is refused: use a number above 0, at most 1.")
    if temperature == 0 and samples > 1:
        raise ValueError(
            f"{name}.samples={samples} with {name}.temperature={temperature} would be one answer {samples} times: use "
            "samples=1, or a temperature above 0."
        )


def columns(configs: Iterable[Config]) -> dict[str, str]:
    """{table column: name of its benchmark}. Raises ValueError if two benchmarks have one column."""
    found: dict[str, str] = {}
    for config in configs:
        for column in config["columns"]:
            if column in found:
                raise ValueError(
                    f"The benchmarks '{found[column]}' and '{config['name']}' both have the column '{column}'; "
                    "rename it in the yaml of one of them."
                )
            found[column] = config["name"]
    return found


def load(config: Config, files: Files) -> Any:
    """The raw data of a benchmark, from its original files by the roles of `source.files`.

    `label` of the result is what its scores are called: the name that the data gives itself, else the yaml's title.
    The log warns if the number of items is not the published one.
    Raises ValueError as `check`, and FileNotFoundError and ValueError for missing and broken files.
    """
    check(config)
    raw = module(config).load(files)
    labelled = replace(raw, label=raw.label or config["title"])
    published = config["published"]["items"]
    if len(raw) != published and labelled.label == config["title"]:
        log.warning(
            "%s has %d items here, %d as published: scores are not comparable.", config["title"], len(raw), published
        )
    return labelled


def prompting(config: Config, variant: str, chat: bool) -> Prompting:
    """What a benchmark's yaml gives for one variant and chat format. Raises ValueError for another variant."""
    if variant not in VARIANTS:
        raise ValueError(f"evaluation.variant is '{variant}'; choose one of {', '.join(VARIANTS)}.")
    stops = config.get("stops")
    return Prompting(
        chat=chat,
        variant=variant,
        stops=tuple(stops["chat" if chat else "nochat"][variant]) if stops else (),
        shots=config.get("shots", 0),
        letters=tuple(config.get("letters") or ()),
        max_prompt_tokens=config.get("max_prompt_tokens"),
        max_context_tokens=config.get("max_context_tokens"),
        allow_unprotected=config.get("allow_unprotected", False),
    )


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop that occurs in it; nothing else is touched."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


def predict(config: Config, item: Item, output: Any, stops: Sequence[str]) -> Any:
    """The prediction in what a model gave for an item: a text, or the logits of the letters."""
    return module(config).parse(cut(output, stops) if isinstance(output, str) else output, item)


def matches(prediction: str, gold: str) -> bool:
    """Equal after lower-casing and deleting ASCII punctuation; inner spaces count."""
    return _bare(prediction) == _bare(gold)


def _bare(text: str) -> str:
    return text.lower().translate(str.maketrans("", "", string.punctuation))


def check_ids(items: Iterable[Item], label: str) -> None:
    """Raise ValueError if two items have one id: answers are stored by it."""
    ids = Counter(item.id for item in items)
    if repeated := [name for name, count in ids.items() if count > 1]:
        raise ValueError(f"{label} has the id '{repeated[0]}' {ids[repeated[0]]} times; keep one of these rows.")


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
    """How many of `limit` each task gives. Every round takes one from each task that has some left.

    The last round may not reach all of them; it takes from tasks that are evenly spaced.
    """
    quotas = [0] * len(sizes)
    while limit:
        open_tasks = [i for i, size in enumerate(sizes) if quotas[i] < size]
        for i in even(len(open_tasks), min(limit, len(open_tasks))):
            quotas[open_tasks[i]] += 1
            limit -= 1
    return quotas


def aggregate(records: Iterable[Mapping[str, Any]], average: str) -> dict[str, float]:
    """Percent per column over records of {"task", "scores"}: the mean over items, or over the means of the tasks.

    Raises ValueError without records, or for an average that is not in AVERAGES.
    """
    tasks: dict[str, list[dict[str, float]]] = defaultdict(list)
    for record in records:
        tasks[record["task"] if average == "tasks" else ""].append(record["scores"])
    if not tasks:
        raise ValueError("There are no predictions to average.")
    if average not in AVERAGES:
        raise ValueError(f"average is '{average}'; choose 'items' or 'tasks'.")
    return _mean([_mean(scores) for scores in tasks.values()])


def _mean(scores: list[dict[str, float]]) -> dict[str, float]:
    return {column: fmean(score[column] for score in scores) for column in scores[0]}

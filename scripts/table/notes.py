"""What a table says about itself: profile, seeds, item counts, and every setting that is not the paper's."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from scripts.config import compose
from scripts.table.collect import Result, labels
from scripts.table.experiment import changes
from scripts.table.grid import shown_benchmarks
from scripts.table.rates import SETTING, at_the_edge, own_rates
from scripts.table.render import titles

COMPARED = ("trainer", "evaluation", "benchmark")  # the sections in which a profile differs from the paper's
IRRELEVANT = re.compile(
    r"benchmark\.\w+\.(source|stops)|trainer\.(logging|eval|save)_steps|evaluation\.when"
)  # to a score


def of(cfg: DictConfig, overrides: Sequence[str], found: Sequence[Result]) -> list[str]:
    """The notes under a table."""
    names = labels(found)
    counts = {b: m["items"] for result in found for b, m in result.metrics.items()}
    examples = {r.cell.dataset: r.run.info["data"]["train"] for r in found if r.cell.dataset}
    seeds = ", ".join(map(str, cfg.seeds))
    notes = [
        f"Profile `{cfg.profile}`, base model `{cfg.model.name}`. Seeds: {seeds}"
        + (" (mean ± standard deviation; vanilla rows: the first)." if len(cfg.seeds) > 1 else "."),
        "Items: " + ", ".join(f"{names[b]} {counts[b]:,}" for b in shown_benchmarks(cfg) if b in counts) + ".",
    ]
    if examples:
        sizes = [f"{name} {examples[name]:,}" for name in cfg.table.datasets if name in examples]
        notes.append(f"Training examples: {', '.join(sizes)}.")
    if cfg.datasets is not None:
        notes.append("Only with the training sets named in `datasets`, and the columns that they train for.")
    if changed := changes(overrides):
        notes.append("Overrides: " + ", ".join(f"`{change}`" for change in changed) + ".")
    notes += learning_rates(cfg, overrides, found)
    if scaled := differences(cfg):
        notes.append("Other than the paper's setting (in brackets): " + "; ".join(scaled) + ".")
    for benchmark, label in sorted(names.items()):
        title = cfg.benchmark[benchmark].title
        if label != title:
            notes.append(f"{label} stands where the paper has {title}, and is not comparable with it.")
    notes += left_out(cfg, names)
    return [*notes, *mixed_code(found), *cfg.table.get("notes", [])]


def left_out(cfg: DictConfig, names: Mapping[str, str]) -> list[str]:
    """Why columns of the table are not in its average.   names: of the benchmarks, as their data names itself"""
    head = titles(cfg, names)
    reasons = cfg.not_in_average.items()
    return [f"{head[column]} is not in Avg.: {reason}" for column, reason in reasons if column in cfg.table.columns]


def learning_rates(cfg: DictConfig, overrides: Sequence[str], found: Sequence[Result]) -> list[str]:
    """Which learning rates were used, and how they were chosen; nothing where no cell was trained."""
    trained = list(dict.fromkeys(result.cell.method for result in found if result.cell.dataset))
    if not trained:
        return []
    if cfg.rates is None:
        return [f"Learning rate: {cfg.trainer.learning_rate:g} for every method."]
    own = own_rates(cfg, overrides, sorted(trained))
    groups: dict[tuple[tuple[str, ...], str], list[str]] = {}  # methods with their rates, by sets and seeds
    shown: dict[tuple[str, ...], str] = {}  # sets in the order of the first method that has them
    for method, rate in own.items():
        sets, seeds = tuple(sorted(rate["datasets"])), ", ".join(map(str, sorted(rate["seeds"])))
        shown.setdefault(sets, ", ".join(rate["datasets"]))
        groups.setdefault((sets, seeds), []).append(f"`{method}` {rate['learning_rate']:g}")
    if len(groups) == 1:
        [((sets, seeds), each)] = groups.items()
        chosen = f"({shown[sets]}) of those tried on seeds that the table does not report ({seeds}): {', '.join(each)}."
    else:
        parts = [f"on {shown[sets]} (seeds: {seeds}) {', '.join(each)}" for (sets, seeds), each in groups.items()]
        chosen = f"of those tried on seeds that the table does not report: {'; '.join(parts)}."
    note = f"Learning rate: each method's own (`rates=own`), with the lowest validation loss {chosen}"
    edges = [f"`{method}`" for method, rate in own.items() if at_the_edge(rate)]
    beyond = " A better one may lie beyond those tried for " + ", ".join(edges) + "."
    return [note + beyond if edges else note]


def mixed_code(found: Sequence[Result]) -> list[str]:
    """Notes on packages whose code changed between the cells, or was not recorded by the old runs among them."""
    made: dict[str, Counter[str]] = {}
    for result in found:
        for package, key in result.code:
            made.setdefault(package, Counter())[key or ""] += 1
    return [
        f"The results were not all made by the same code under {package}/: {_versions(versions)}."
        for package, versions in sorted(made.items())
        if len(versions) > 1 or "" in versions
    ]


def _versions(counts: Mapping[str, int]) -> str:
    """`12 by 0a1b2c3d, 6 not recorded`: counts of results, by the key of the code that made them ('': not recorded)."""
    return ", ".join(f"{count} by {key}" if key else f"{count} not recorded" for key, count in sorted(counts.items()))


def differences(cfg: DictConfig) -> list[str]:
    """The settings of training, and of evaluation on the benchmarks of `cfg`, in which it is not the paper profile."""
    paper, shown = compose(["profile=paper", f"table={cfg.table.name}"]), shown_benchmarks(cfg)
    ours, theirs = _flat(cfg, shown), _flat(paper, shown)
    if cfg.rates is not None:  # there is a note on it
        ours[SETTING] = theirs[SETTING]
    return [
        f"{key} {ours.get(key)} ({theirs.get(key)})" for key in {**theirs, **ours} if ours.get(key) != theirs.get(key)
    ]


def times(found: Sequence[Result]) -> dict[str, Any]:
    """Seconds per cell, and their sums, on a machine that may have done other work meanwhile."""
    cells = {result.cell.path.name: result.seconds for result in found}
    training = sum(seconds["training"] for seconds in cells.values())
    return {
        "training_seconds": round(training, 2),
        "evaluation_seconds": round(sum(sum(seconds.values()) for seconds in cells.values()) - training, 2),
        "cells": cells,
    }


def _flat(cfg: DictConfig, shown: Collection[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"limit": cfg.limit or "all"}
    for section in COMPARED:
        found |= _leaves(section, OmegaConf.to_container(cfg[section], resolve=True))
    return {
        key: value
        for key, value in found.items()
        if not IRRELEVANT.match(key) and (not key.startswith("benchmark.") or key.split(".")[1] in shown)
    }


def _leaves(prefix: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {name: leaf for key, child in value.items() for name, leaf in _leaves(f"{prefix}.{key}", child).items()}

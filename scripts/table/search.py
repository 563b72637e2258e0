"""Grid searches, selected on validation loss and never on a benchmark."""

import itertools
import re
import sys
from collections.abc import Collection, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, replace
from math import inf, isfinite, isinf
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.errors import InstantiationException
from omegaconf import DictConfig, ListConfig

from scripts.cell import runs
from scripts.cell.parameters import trainable_parameters
from scripts.command import sentence
from scripts.config import compose
from scripts.table.launch import launch
from scripts.table.rates import SETTING, keep, rates_file
from scripts.table.rehearsal import check_launcher, fetch_training_sets

# The line of a run whose loss stopped being a number: its overrides, and what `CellTrainer` says.
DIVERGED = re.compile(r"(?P<job>.*): The loss is (nan|-?inf) at step \d+; .*")


@dataclass(frozen=True)
class Combination:
    """A method with one value for each searched setting, and the runs that try it.

    jobs, runs: overrides and run directory by training set and seed;  skipped: why it cannot be, or None
    """

    method: str
    settings: dict[str, float]
    jobs: dict[tuple[str, int], list[str]]
    runs: dict[tuple[str, int], Path]
    skipped: str | None = None


def replaced(cfg: DictConfig) -> dict[str, str]:
    """The overrides that a search would replace by its own choices, and what is meant: for `refuse_lost`."""
    return {key: f"the search tries its own; use search.grid.{key}=[{{value}}]" for key in _grid(cfg)} | {
        "seeds": "a search has seeds of its own, which no table reports; use search.seeds={value}",
        "rates": f"a search finds the rates; use search.grid.{SETTING} for those to try",
    }


def combinations(cfg: DictConfig, overrides: Sequence[str]) -> list[Combination]:
    """Every combination of `search.grid` with each of `methods`, the impossible ones with the sentence that says why.

    Without `methods`, the method of the search's yaml. Raises ValueError if the grid names no setting.
    """
    grid = _grid(cfg)
    if not grid:
        raise ValueError(f"search.grid of '{cfg.search.name}' names no setting; see configs/search/lr.yaml.")
    tried = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    methods = cfg.methods or [cfg.search.method]
    found = [_combination(cfg, overrides, method, settings) for method in methods for settings in tried]
    return placed(found, overrides)


def placed(found: Sequence[Combination], overrides: Sequence[str]) -> list[Combination]:
    """The combinations with their run directories, whose keys hold the content of the data that is here now."""
    return [
        replace(c, runs={key: runs.run_dir(compose([*overrides, *job])) for key, job in c.jobs.items()}) for c in found
    ]


def untrained(found: Sequence[Combination]) -> dict[Path, list[str]]:
    """The run directories without a finished run, and the overrides of each."""
    jobs = {path: c.jobs[key] for c in found for key, path in c.runs.items()}
    return {path: job for path, job in jobs.items() if not runs.is_finished(path)}


def prepare(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """What a search does before its first run: it looks for the launcher and fetches the training sets.

    Raises ValueError for an unknown launcher, and as `fetch_training_sets`.
    """
    check_launcher(cfg)
    fetch_training_sets(cfg, overrides, cfg.search.datasets)


def train(cfg: DictConfig, overrides: Sequence[str], missing: dict[Path, list[str]]) -> tuple[list[str], set[Path]]:
    """Train the runs of `untrained`; returns a line for each that failed, and the directories of those that diverged.

    A worker that is killed is one failure, after which other runs may be unfinished too.
    """
    try:
        failed = launch(overrides, list(missing.values()), cfg.launcher, cfg.workers) if missing else []
    except BrokenExecutor:
        return ["A worker was killed (out of memory?); the same command goes on from the last checkpoints."], set()
    paths = {" ".join(job): path for path, job in missing.items()}
    diverged = {line: match for line in failed if (match := DIVERGED.fullmatch(line))}
    return [line for line in failed if line not in diverged], {paths[match["job"]] for match in diverged.values()}


def ranking(found: Sequence[Combination], diverged: Collection[Path] = ()) -> pd.DataFrame:
    """A line per combination: of each method, the lowest mean validation loss over training sets and seeds first.

    diverged: run directories of which the loss counts as infinite. A method with another run that is not finished is
        left out
    """
    unfinished = {c.method for c in found for path in untrained([c]) if path not in diverged}
    lines = []
    for combination in found:
        if combination.skipped is None and combination.method not in unfinished:
            losses = {key: inf if path in diverged else _loss(path) for key, path in combination.runs.items()}
            by_dataset = pd.Series(losses).groupby(level=0, sort=False).mean()
            own = {"method": combination.method} | combination.settings
            lines.append(own | dict(by_dataset) | {"mean": by_dataset.mean()})
    if not lines:
        return pd.DataFrame()
    order = {method: place for place, method in enumerate(dict.fromkeys(c.method for c in found))}
    ranked = pd.DataFrame(lines).sort_values("mean", kind="stable")
    return ranked.sort_values("method", kind="stable", key=lambda names: names.map(order), ignore_index=True)


def report(cfg: DictConfig, overrides: Sequence[str], ranked: pd.DataFrame) -> None:
    """Print the ranking; keep the rates that a search of learning rates has tried, and print where."""
    if ranked.empty:
        return
    print(ranked.to_string(float_format="{:.4g}".format))
    tried = tried_rates(cfg, ranked)
    for method, own in tried.items():
        if isinf(min(own["tried"].values())):
            print(f"No rate of {method} is kept: training diverged at all of these.", file=sys.stderr)
    path = rates_file(cfg, overrides)
    keep(path, tried)
    if tried and path.is_file():
        print(path)


def tried_rates(cfg: DictConfig, ranked: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Of each method the learning rates with their means, and what else `scripts.table.rates` keeps.

    Empty for a search of other settings.
    """
    if list(_grid(cfg)) != [SETTING]:
        return {}
    common = {"seeds": list(cfg.search.seeds), "datasets": list(cfg.search.datasets)}
    return {str(method): {**common, "tried": _tried(own)} for method, own in ranked.groupby("method", sort=False)}


def _grid(cfg: DictConfig) -> dict[str, ListConfig]:
    """The values that a search tries, by dotted key. A section that is null is left out.

    Raises ValueError for anything but a list with values.
    """
    grid, sections = {}, dict[str, Any](cfg.search.grid or {})
    for section, own in sections.items():
        if own is not None and not isinstance(own, DictConfig):
            raise ValueError(f"search.grid.{section}={own} is refused: name a setting of it, with a list of values.")
        for key, values in dict[str, Any](own or {}).items():
            if not isinstance(values, ListConfig) or not values:
                raise ValueError(f"search.grid.{section}.{key}={values} is refused: it takes a list of values to try.")
            grid[f"{section}.{key}"] = values
    return grid


def _loss(path: Path) -> float:
    """The validation loss of a finished run, in nats; infinite where its last step diverged."""
    loss = float(runs.load(path).info["metrics"]["eval_loss"])
    return loss if isfinite(loss) else inf


def _tried(own: pd.DataFrame) -> dict[float, float]:
    """Mean validation loss by learning rate, the lowest rate first."""
    return {float(rate): round(float(mean), 6) for rate, mean in sorted(zip(own[SETTING], own["mean"], strict=True))}


def _combination(cfg: DictConfig, overrides: Sequence[str], method: str, settings: dict[str, float]) -> Combination:
    chosen = [f"method={method}", *(f"{key}={value}" for key, value in settings.items())]
    if reason := _impossible(compose([*overrides, *chosen])):
        return Combination(method, settings, {}, {}, reason)
    cells = itertools.product(cfg.search.datasets, cfg.search.seeds)
    jobs = {(name, seed): [*chosen, f"dataset={name}", f"seed={seed}"] for name, seed in cells}
    return Combination(method, settings, jobs, {})


def _impossible(cfg: DictConfig) -> str | None:
    """Why the method does not fit the model, found on its shapes alone."""
    try:
        trainable_parameters(cfg)
    except (ValueError, InstantiationException) as error:
        return sentence(error)
    return None

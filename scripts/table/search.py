"""Grid searches, selected on validation loss and never on a benchmark."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.errors import InstantiationException
from omegaconf import DictConfig

from scripts.cell import runs
from scripts.cell.parameters import trainable_parameters
from scripts.command import sentence
from scripts.config import compose
from scripts.table.rates import SETTING


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


def combinations(cfg: DictConfig, overrides: Sequence[str]) -> list[Combination]:
    """Every combination of `search.grid` with each of `methods`, the impossible ones with the sentence that says why.

    Without `methods`, the method of the search's yaml. Raises ValueError if the grid names no setting.
    """
    grids = {
        f"{section}.{key}": values for section, own in (cfg.search.grid or {}).items() for key, values in own.items()
    }
    if not grids:
        raise ValueError(f"search.grid of '{cfg.search.name}' names no setting; see configs/search/lr.yaml.")
    tried = [dict(zip(grids, values, strict=True)) for values in itertools.product(*grids.values())]
    methods = cfg.methods or [cfg.search.method]
    return [_combination(cfg, overrides, method, settings) for method in methods for settings in tried]


def ranking(found: Sequence[Combination]) -> pd.DataFrame:
    """A line per combination: of each method, the lowest mean validation loss over training sets and seeds first."""
    lines = []
    for combination in found:
        if combination.skipped is None:
            losses = {key: runs.load(path).info["metrics"]["eval_loss"] for key, path in combination.runs.items()}
            by_dataset = pd.Series(losses).groupby(level=0, sort=False).mean()
            own = {"method": combination.method} | combination.settings
            lines.append(own | dict(by_dataset) | {"mean": by_dataset.mean()})
    order = {method: place for place, method in enumerate(dict.fromkeys(c.method for c in found))}
    ranked = pd.DataFrame(lines).sort_values("mean", kind="stable")
    return ranked.sort_values("method", kind="stable", key=lambda names: names.map(order), ignore_index=True)


def best_rates(cfg: DictConfig, ranked: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Of each method the learning rate with the lowest mean, and what else `scripts.table.rates` keeps.

    Empty for a search of other settings.
    """
    if [f"{section}.{key}" for section, own in cfg.search.grid.items() for key in own] != [SETTING]:
        return {}
    common = {"seeds": list(cfg.search.seeds), "datasets": list(cfg.search.datasets)}
    return {
        str(method): {"learning_rate": float(own[SETTING].iloc[0]), **common, "tried": _tried(own)}
        for method, own in ranked.groupby("method", sort=False)
    }


def _tried(own: pd.DataFrame) -> dict[float, float]:
    """Mean validation loss by learning rate, the lowest rate first."""
    return {float(rate): round(float(mean), 6) for rate, mean in sorted(zip(own[SETTING], own["mean"], strict=True))}


def _combination(cfg: DictConfig, overrides: Sequence[str], method: str, settings: dict[str, float]) -> Combination:
    chosen = [f"method={method}", *(f"{key}={value}" for key, value in settings.items())]
    own = compose([*overrides, *chosen])
    reason = _impossible(own)
    if reason is not None:
        return Combination(method, settings, {}, {}, reason)
    jobs, paths = {}, {}
    for name, seed in itertools.product(cfg.search.datasets, cfg.search.seeds):
        jobs[name, seed] = [*chosen, f"dataset={name}", f"seed={seed}"]
        paths[name, seed] = runs.run_dir(compose([*overrides, *jobs[name, seed]]))
    return Combination(method, settings, jobs, paths)


def _impossible(cfg: DictConfig) -> str | None:
    """Why the method does not fit the model, found on its shapes alone."""
    try:
        trainable_parameters(cfg)
    except (ValueError, InstantiationException) as error:
        return sentence(error)
    return None

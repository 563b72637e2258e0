"""Grid searches, selected on validation loss and never on a benchmark."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from hydra.errors import InstantiationException
from omegaconf import DictConfig

from scripts.cell import runs
from scripts.command import sentence
from scripts.config import compose


@dataclass(frozen=True)
class Combination:
    """One value for each searched setting, and the runs that try it.

    jobs, runs: overrides and run directory by training set and seed;  skipped: why it cannot be, or None
    """

    settings: dict[str, float]
    jobs: dict[tuple[str, int], list[str]]
    runs: dict[tuple[str, int], Path]
    skipped: str | None = None


def combinations(cfg: DictConfig, overrides: Sequence[str]) -> list[Combination]:
    """Every combination of `search.grid`, the impossible ones with the sentence that says why.

    Raises ValueError if it names no setting.
    """
    grids = {
        f"{section}.{key}": values for section, own in (cfg.search.grid or {}).items() for key, values in own.items()
    }
    if not grids:
        raise ValueError(f"search.grid of '{cfg.search.name}' names no setting; see configs/search/lr.yaml.")
    tried = [dict(zip(grids, values, strict=True)) for values in itertools.product(*grids.values())]
    return [_combination(cfg, overrides, settings) for settings in tried]


def ranking(found: Sequence[Combination]) -> pd.DataFrame:
    """A line per combination, the lowest mean validation loss over training sets and seeds first."""
    lines = []
    for combination in found:
        if combination.skipped is None:
            losses = {key: runs.load(path).info["metrics"]["eval_loss"] for key, path in combination.runs.items()}
            by_dataset = pd.Series(losses).groupby(level=0, sort=False).mean()
            lines.append(combination.settings | dict(by_dataset) | {"mean": by_dataset.mean()})
    return pd.DataFrame(lines).sort_values("mean", ignore_index=True)


def _combination(cfg: DictConfig, overrides: Sequence[str], settings: dict[str, float]) -> Combination:
    chosen = [f"method={cfg.search.method}", *(f"{key}={value}" for key, value in settings.items())]
    own = compose([*overrides, *chosen])
    reason = _impossible(own)
    if reason is not None:
        return Combination(settings, {}, {}, reason)
    jobs, paths = {}, {}
    for name, seed in itertools.product(cfg.search.datasets, cfg.seeds):
        jobs[name, seed] = [*chosen, f"dataset={name}", f"seed={seed}"]
        paths[name, seed] = runs.run_dir(compose([*overrides, *jobs[name, seed]]))
    return Combination(settings, jobs, paths)


def _impossible(cfg: DictConfig) -> str | None:
    """Why the method does not fit the model, found on its shapes alone."""
    from scripts.cost.parameters import trainable_parameters

    try:
        trainable_parameters(cfg)
    except (ValueError, InstantiationException) as error:
        return sentence(error)
    return None

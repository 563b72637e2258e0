"""Everything that a table will need, walked once with dry values before the first cell is trained."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from data_prep.sources import fetched
from eval import benchmarks
from scripts.command import EXPECTED, sentence
from scripts.config import choices, compose, unknown
from scripts.table import grid, notes
from scripts.table.claims import claims
from scripts.table.produce import drawn
from scripts.table.summary import HELD_OUT, LOSS, Entry

ITEMS = 12  # of a dry benchmark: two tasks of six


def rehearse(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Fetch and read the data, check the settings, and render the table from dry values. Nothing is written.

    Raises ValueError, FileNotFoundError and others, each with one sentence, for what would end the table later.
    """
    from scripts.cell.evaluation import load_benchmark  # torch and transformers: once the table is known to be right
    from scripts.cell.settings import TrainerSettings

    grid.check_table(cfg)
    claims(cfg)
    TrainerSettings.of(cfg.trainer)
    check_launcher(cfg)
    shown = grid.shown_benchmarks(cfg)
    for name in shown:
        config: Any = OmegaConf.to_container(cfg.benchmark[name], resolve=True)
        benchmarks.check(config)
        benchmarks.prompting(config, cfg.evaluation.variant, chat=True)
    for name in shown:
        load_benchmark(cfg, name)
    fetch_training_sets(cfg, overrides, cfg.table.datasets)
    drawn(cfg, dry_entries(cfg), shown[:1], {}, notes.differences(cfg))


def fetch_training_sets(cfg: DictConfig, overrides: Sequence[str], names: Sequence[str]) -> None:
    """Have the raw files of these training sets on disk, on whose content the keys of runs depend.

    Raises what `data_prep.sources.fetched` raises, for files that cannot be had.
    """
    for name in names:
        source = compose([*overrides, f"dataset={name}"]).dataset.source
        fetched(source, cfg.data, Path(cfg.cache_dir))


def fetch_what_can_be_had(cfg: DictConfig, overrides: Sequence[str], names: Sequence[str]) -> None:
    """As `fetch_training_sets`, but what cannot be had is printed: its cells fail, and the table has the others."""
    for name in names:
        try:
            fetch_training_sets(cfg, overrides, [name])
        except EXPECTED as error:
            print(f"{name}: {sentence(error)}", file=sys.stderr)


def check_launcher(cfg: DictConfig) -> None:
    """Raise ValueError for a launcher that neither configs/hydra/launcher nor Hydra's plugins have."""
    if cfg.launcher is None:
        return
    known = {*choices("hydra/launcher"), "basic", "joblib", "submitit_local", "submitit_slurm"}
    if cfg.launcher not in known:
        raise ValueError(unknown("launcher", cfg.launcher, known))


def dry_entries(cfg: DictConfig) -> dict[str, Entry]:
    """Scores that nobody reached, in the shape of real ones, for every method of the table and every seed."""
    rng = np.random.default_rng(0)
    methods = [method for row in grid.rows(cfg) for method in row.methods]
    return {method: _dry_entry(cfg, method, rng) for method in methods}


def _dry_entry(cfg: DictConfig, method: str, rng: np.random.Generator) -> Entry:
    owner = benchmarks.columns(cfg.benchmark.values()) | {LOSS: HELD_OUT}
    columns = [*cfg.table.columns, LOSS]
    items = {
        name: _dry_items(list(cfg.seeds), [column for column in columns if owner[column] == name], rng)
        for name in [*grid.shown_benchmarks(cfg), HELD_OUT]
    }
    scores = pd.DataFrame({column: items[owner[column]][column].mean() for column in columns})
    return Entry(method, rank=8, params=1000, scores=scores, items=items, averaged=grid.averaged(cfg))


def _dry_items(seeds: list[int], columns: list[str], rng: np.random.Generator) -> pd.DataFrame:
    index = pd.MultiIndex.from_product([["one", "two"], map(str, range(ITEMS // 2))], names=["task", "id"])
    wide = pd.MultiIndex.from_product([columns, seeds], names=["column", "seed"])
    return pd.DataFrame(100.0 * rng.integers(0, 2, (len(index), len(wide))), index, wide)

"""The cells of a table: which runs its rows need, and which of them are still missing."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from scripts.cell import runs
from scripts.config import CONFIGS, choices, compose


@dataclass(frozen=True)
class Row:
    """A line of a table. `methods` are the candidates that run here; empty: the row is shown as not run."""

    label: str
    rank: str | None
    methods: tuple[str, ...]
    against: str | None  # the LoRA at the same budget, for the paired test


@dataclass(frozen=True)
class Cell:
    """One (method, dataset, seed) and where its run lives; `benchmarks` are those that the table shows of it."""

    method: str
    dataset: str | None  # None: a vanilla row, which trains on nothing and is tested on everything
    seed: int
    benchmarks: tuple[str, ...]
    path: Path


def rows(cfg: DictConfig) -> list[Row]:
    """The table's rows, each with the candidates asked for by `methods` (or the first `candidates` of each row)."""
    return [Row(r.label, r.rank, _chosen(r.methods, cfg), r.get("against")) for r in cfg.table.rows]


def ablation(rows: Sequence[Any]) -> list[Any]:
    """Of rows with `label` and `rank`: those like `MoS -sp`, and the MoS of their rank that they are compared with."""
    ranks = {row.rank for row in rows if row.label.startswith("MoS -")}
    return [row for row in rows if row.label.startswith("MoS") and row.rank in ranks]


def check_methods(methods: Sequence[str]) -> None:
    """Refuse a method that no table has. Raises ValueError naming it, the nearest and all the known ones."""
    tables = [OmegaConf.load(path) for path in sorted((CONFIGS / "table").glob("*.yaml"))]
    known = sorted({method for table in tables for row in table.rows for method in row.methods})
    for method in methods:
        if method not in known:
            near = difflib.get_close_matches(method, known, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"No table has a method '{method}'.{hint} Known: {', '.join(known)}.")


def cells(cfg: DictConfig, overrides: Sequence[str]) -> list[Cell]:
    """Every cell of the table's requested rows, methods x datasets x seeds, in the order of the table.

    overrides: what the cells have in common (profile, model, data, ...); method, dataset and seed are added here.
    A vanilla row has one cell, of the first seed. Hydra composes each method and each dataset once, not each of their
    combinations: that keeps a second `make` quick.
    """
    methods = list(dict.fromkeys(method for row in rows(cfg) for method in row.methods))
    if not methods:
        return []
    shown = list(dict.fromkeys(column.split("_")[0] for column in cfg.table.columns))
    per_dataset = {d: compose([*overrides, f"method={methods[0]}", f"dataset={d}"]).dataset for d in choices("dataset")}
    used = {name: node for name, node in per_dataset.items() if set(shown) & set(node.benchmarks)}
    found = []
    for method in methods:
        base = compose([*overrides, f"method={method}"])
        vanilla = base.method.config is None
        for name in [None] if vanilla else used:
            tested = shown if name is None else [b for b in used[name].benchmarks if b in shown]
            for seed in cfg.seeds[:1] if vanilla else cfg.seeds:
                base.seed = seed
                base.dataset = base.dataset if name is None else used[name]
                found.append(Cell(method, name, seed, tuple(tested), runs.run_dir(base)))
    return found


def job(cell: Cell) -> list[str]:
    """The overrides that turn the common config into this cell's."""
    dataset = [] if cell.dataset is None else [f"dataset={cell.dataset}"]
    return [f"method={cell.method}", *dataset, f"seed={cell.seed}"]


def untrained(found: Sequence[Cell]) -> list[Cell]:
    """The cells that have no finished run yet."""
    return [cell for cell in found if not runs.is_finished(cell.path)]


def _chosen(methods: Sequence[str], cfg: DictConfig) -> tuple[str, ...]:
    if cfg.methods is not None:
        return tuple(method for method in methods if method in cfg.methods)
    return tuple(methods[: cfg.candidates])  # None: all of them

"""The cells of a table: which runs its rows need, and which of them are still missing."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from scripts import runs

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


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
    dataset: str | None  # None: a vanilla row, nothing to train
    seed: int
    benchmarks: tuple[str, ...]
    cfg: DictConfig = field(compare=False, repr=False)
    path: Path = field(compare=False)


def compose(overrides: Sequence[str]) -> DictConfig:
    """The root config with Hydra overrides applied, as every entry point sees it."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose("config", list(overrides))


def names(group: str) -> list[str]:
    """The files of a config group, sorted; `names("method")` lists every known method."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def rows(cfg: DictConfig) -> list[Row]:
    """The table's rows, each with the candidates asked for by `methods` (or the first `candidates` of each row)."""
    return [Row(r.label, r.rank, _chosen(r.methods, cfg), r.get("against")) for r in cfg.table.rows]


def check_methods(cfgs: Sequence[DictConfig]) -> None:
    """Refuse a method that is no row of any of the tables asked for.

    Raises ValueError naming the method and the ones that would do.
    """
    offered = {method for cfg in cfgs for row in cfg.table.rows for method in row.methods}
    for method in cfgs[0].methods or []:
        if method not in offered:
            near = difflib.get_close_matches(method, offered, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            where = " or ".join(cfg.table.name for cfg in cfgs)
            kind = "not a row of" if method in names("method") else "an unknown method, not in"
            raise ValueError(f"'{method}' is {kind} {where}.{hint} Known there: {', '.join(sorted(offered))}.")


def cells(cfg: DictConfig, overrides: Sequence[str]) -> list[Cell]:
    """Every cell of the table's requested rows, methods x datasets x seeds, in the order of the table.

    overrides: what the cells have in common (profile, model, data, ...); method, dataset and seed are added here.
    Hydra composes each method and each dataset once, not each of their combinations: that keeps a second `make` quick.
    """
    methods = list(dict.fromkeys(method for row in rows(cfg) for method in row.methods))
    if not methods:
        return []
    shown = {column.split("_")[0] for column in cfg.table.columns}
    per_dataset = {d: compose([*overrides, f"method={methods[0]}", f"dataset={d}"]).dataset for d in names("dataset")}
    used = {name: node for name, node in per_dataset.items() if shown & set(node.benchmarks)}
    found = []
    for method in methods:
        base = compose([*overrides, f"method={method}"])
        if base.method.config is None:
            found.append(_cell(base, None, None, cfg.seeds[0], sorted(shown)))
            continue
        found += [
            _cell(base, name, node, seed, [b for b in node.benchmarks if b in shown])
            for name, node in used.items()
            for seed in cfg.seeds
        ]
    return found


def job(cell: Cell) -> list[str]:
    """The overrides that turn the common config into this cell's."""
    return [f"method={cell.method}", f"dataset={cell.dataset}", f"seed={cell.seed}"]


def untrained(found: Sequence[Cell]) -> list[Cell]:
    """The cells that have no finished run yet."""
    return [cell for cell in found if cell.dataset is not None and not runs.is_finished(cell.path)]


def _chosen(methods: Sequence[str], cfg: DictConfig) -> tuple[str, ...]:
    if cfg.methods is not None:
        return tuple(method for method in methods if method in cfg.methods)
    return tuple(methods[: cfg.candidates])  # None: all of them


def _cell(base: DictConfig, name: str | None, node: DictConfig | None, seed: int, benchmarks: list[str]) -> Cell:
    cfg = base.copy()
    OmegaConf.set_readonly(cfg, False)
    cfg.seed = seed
    if node is not None:
        cfg.dataset = node
    return Cell(base.method.name, name, seed, tuple(benchmarks), cfg, runs.run_dir(cfg))

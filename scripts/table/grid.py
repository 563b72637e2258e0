"""The cells of a table: which runs its rows need, and which of them are still missing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from eval import benchmarks
from scripts.cell import runs
from scripts.config import CONFIGS, choices, compose, unknown
from scripts.table import schema
from scripts.table.rates import SETTING, own_rates


@dataclass(frozen=True)
class Row:
    """A line of a table. `methods` are the candidates that run here; empty: the row is shown as not run."""

    label: str
    rank: str | None
    methods: tuple[str, ...]
    against: str | None = None  # the LoRA at the same budget, for the paired test
    ablation: bool = False  # drawn in the figure of the ablation, whose first row is the whole method
    candidates: int = 1  # methods of this row in the table's yaml

    @property
    def name(self) -> str:
        """Label and rank, as figures and notes call the row."""
        return f"{self.label} {self.rank or ''}".strip()


@dataclass(frozen=True)
class Cell:
    """One (method, dataset, seed) and where its run lives; `benchmarks` are those that the table shows of it."""

    method: str
    dataset: str | None  # None: a vanilla row, which trains on nothing and is tested on everything
    seed: int
    benchmarks: tuple[str, ...]
    path: Path
    rate: float | None = None  # the method's own learning rate; None: the trainer's


def rows(cfg: DictConfig) -> list[Row]:
    """The table's rows, each with the candidates asked for by `methods` (or the first `candidates` of each row)."""
    return [
        Row(r.label, r.rank, _chosen(r.methods, cfg), r.get("against"), r.get("ablation", False), len(r.methods))
        for r in cfg.table.rows
    ]


def averaged(cfg: DictConfig) -> list[str]:
    """The columns that the average is over. Raises ValueError if `not_in_average` leaves none of the table's."""
    kept = [column for column in cfg.table.columns if column not in cfg.not_in_average]
    if not kept:
        raise ValueError(f"not_in_average leaves no column of table '{cfg.table.name}' for its average; keep one.")
    return kept


def shown_benchmarks(cfg: DictConfig) -> list[str]:
    """The benchmarks of the table's columns, in their order. Raises ValueError for a column that no benchmark has."""
    _check_benchmarks(cfg)
    owner = benchmarks.columns(cfg.benchmark.values())
    for column in cfg.table.columns:
        if column not in owner:
            raise ValueError(f"Table '{cfg.table.name}': {unknown('column', column, owner)}")
    return list(dict.fromkeys(owner[column] for column in cfg.table.columns))


def _check_benchmarks(cfg: DictConfig) -> None:
    """What decides which benchmark a column belongs to; the rest is checked by `eval.benchmarks.check`."""
    for name, config in cfg.benchmark.items():
        if not isinstance(config, DictConfig):
            raise ValueError(
                f"A file of configs/benchmark sets benchmark.{name}={config}; begin it with a line "
                "`# @package benchmark.NAME`, with its own name."
            )
        if config.get("name") != name:
            raise ValueError(
                f"A file of configs/benchmark sets benchmark.{name}, but says name: {config.get('name')}; its name, "
                "`name:` and `# @package benchmark.NAME` must be the same."
            )
        if not config.get("columns"):
            raise ValueError(f"configs/benchmark/{name}.yaml lacks columns.")


def check_methods(methods: Sequence[str]) -> None:
    """Refuse a method that no table has. Raises ValueError naming it, the nearest and all the known ones."""
    tables: list[Any] = [OmegaConf.to_container(OmegaConf.load(path)) for path in (CONFIGS / "table").glob("*.yaml")]
    rows = [row for table in tables for row in table.get("rows") or [] if isinstance(row, dict)]
    known = {method for row in rows for method in row.get("methods") or []}
    for method in methods:
        if method not in known:
            raise ValueError(f"No table has it: {unknown('method', method, known)}")


def nothing_chosen(cfg: DictConfig) -> str | None:
    """What to say of a table of which `methods` chooses no row; None for any other.

    Raises ValueError for a method of no table, and for rows that are none.
    """
    schema.check(cfg.table)
    check_methods(cfg.methods or [])
    if not cfg.methods or any(row.methods for row in rows(cfg)):
        return None
    return f"{cfg.table.name}: none of {', '.join(cfg.methods)} is a row of it; nothing to do."


def check_table(cfg: DictConfig) -> None:
    """Refuse a table's yaml that would fail, or mix numbers, once its cells are trained. Raises ValueError."""
    schema.check(cfg.table)
    where = f"Table '{cfg.table.name}'"
    named = [method for row in cfg.table.rows for method in row.methods]
    _refuse_repeated(where, "row", [f"{row.label} {row.rank or ''}".strip() for row in cfg.table.rows])
    _refuse_repeated(where, "method", named)
    for group, names in (("method", named), ("dataset", cfg.table.datasets)):
        for name in names:
            if name not in choices(group):
                raise ValueError(f"{where}: {unknown(group, name, choices(group))}")
    for row in cfg.table.rows:
        against = row.get("against")
        if against not in (None, *named):
            raise ValueError(f"{where}, row {row.label}, against: {unknown('method of this table', against, named)}")
    shown_benchmarks(cfg)
    averaged(cfg)
    files: list[Any] = [OmegaConf.load(path) for path in (CONFIGS / "benchmark").glob("*.yaml")]
    columns = {column for file in files for column in file.get("columns") or {}}  # of all, chosen or not
    for column in cfg.not_in_average:
        if column not in columns:
            raise ValueError(f"not_in_average: {unknown('column', column, columns)}")


def check_method(cfg: DictConfig, file: str) -> None:
    """Refuse a method's yaml without what a run's key and a table need. Raises ValueError.

    file: the yaml's name without its ending; runs are filed under it
    """
    where = f"configs/method/{file}.yaml"
    if missing := [key for key in ("name", "version", "label", "config") if key not in cfg.method]:
        raise ValueError(f"{where} lacks {', '.join(missing)}; see configs/method/mos.yaml.")
    if cfg.method.name != file:
        raise ValueError(f"{where} says name: {cfg.method.name}; write name: {file}, or its runs mix with the other's.")


def cells(cfg: DictConfig, overrides: Sequence[str]) -> list[Cell]:
    """Every cell of the table's requested rows, methods x datasets x seeds, in the order of the table.

    overrides: what the cells have in common (profile, model, data, ...); method, dataset and seed are added here.
    A vanilla row has one cell, of the first seed. Hydra composes each method and each dataset once, not each of their
    combinations: that keeps a second `make` quick.
    Raises ValueError as `check_table`, and where two datasets of the table train for one benchmark, or none; with
    `rates=own` as `scripts.table.rates.own_rates`.
    """
    check_table(cfg)
    methods = list(dict.fromkeys(method for row in rows(cfg) for method in row.methods))
    if not methods:
        return []
    shown = shown_benchmarks(cfg)
    datasets = _datasets(cfg, overrides, methods[0], shown)
    bases = {method: compose([*overrides, f"method={method}"]) for method in methods}
    own = own_rates(cfg, overrides, [method for method, base in bases.items() if base.method.get("config") is not None])
    found = []
    for method, base in bases.items():
        check_method(base, method)
        vanilla = base.method.config is None
        rate = own[method]["learning_rate"] if method in own else None
        base.trainer.learning_rate = base.trainer.learning_rate if rate is None else rate
        for name in [None] if vanilla else datasets:
            tested = shown if name is None else [b for b in datasets[name].benchmarks if b in shown]
            for seed in cfg.seeds[:1] if vanilla else cfg.seeds:
                base.seed = seed
                base.dataset = base.dataset if name is None else datasets[name]
                found.append(Cell(method, name, seed, tuple(tested), runs.run_dir(base), rate))
    return found


def job(cell: Cell) -> list[str]:
    """The overrides that turn the common config into this cell's."""
    dataset = [] if cell.dataset is None else [f"dataset={cell.dataset}"]
    rate = [] if cell.rate is None else [f"{SETTING}={cell.rate}"]
    return [f"method={cell.method}", *dataset, f"seed={cell.seed}", *rate]


def untrained(found: Sequence[Cell]) -> list[Cell]:
    """The cells that have no finished run yet."""
    return [cell for cell in found if not runs.is_finished(cell.path)]


def _datasets(cfg: DictConfig, overrides: Sequence[str], method: str, shown: Sequence[str]) -> dict[str, DictConfig]:
    """The table's training sets by name. Raises ValueError unless exactly one trains for each shown benchmark."""
    found = {name: compose([*overrides, f"method={method}", f"dataset={name}"]).dataset for name in cfg.table.datasets}
    for name, dataset in found.items():
        if dataset.get("name") != name:
            raise ValueError(f"configs/dataset/{name}.yaml says name: {dataset.get('name')}; write name: {name}.")
    for benchmark in shown:
        trained = [name for name, dataset in found.items() if benchmark in dataset.benchmarks]
        if len(trained) != 1:
            several = f"{' and '.join(trained)} both train" if trained else "none of its datasets trains"
            raise ValueError(
                f"Table '{cfg.table.name}': {several} for the benchmark '{benchmark}', but exactly one must; change "
                "table.datasets, table.columns, or `benchmarks` in configs/dataset."
            )
    for name, dataset in found.items():
        if not set(shown) & set(dataset.benchmarks):
            raise ValueError(
                f"Table '{cfg.table.name}': the dataset '{name}' trains for {', '.join(dataset.benchmarks)}, which no "
                "column shows; leave it out of table.datasets."
            )
    return found


def _refuse_repeated(where: str, kind: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{where} has the {kind} '{name}' twice; its cells would be counted together.")
        seen.add(name)


def _chosen(methods: Sequence[str], cfg: DictConfig) -> tuple[str, ...]:
    if cfg.methods is not None:
        return tuple(method for method in methods if method in cfg.methods)
    return tuple(methods[: cfg.candidates])  # None: all of them

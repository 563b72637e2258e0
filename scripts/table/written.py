"""What a results folder holds: its tables and the trained cells behind them, read back for the page."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from data_prep.storage import read_json
from scripts.config import choices, compose
from scripts.table import grid
from scripts.table.grid import Row
from scripts.table.paper import beside, load_paper
from scripts.table.summary import AVERAGE, LOSS


@dataclass(frozen=True)
class Table:
    """A table of the results folder, as `scripts.tables` wrote it."""

    cfg: DictConfig  # as composed today
    name: str
    title: str
    rows: list[Row]
    columns: list[str]  # table columns, the average and the validation loss
    summary: pd.DataFrame  # measured, means over seeds: what `summarise` gives
    paper: pd.DataFrame
    notes: list[str]


@dataclass(frozen=True)
class Trained:
    """A trained cell of the results, and its loss curve if its run is on this machine."""

    name: str  # <model>/<run>
    row: Row
    data: str  # training set and model: curves of different ones are in different figures
    info: dict[str, Any]  # of its run.json
    metrics: pd.DataFrame | None


def load_tables(profile: str, results: Path) -> list[Table]:
    """The tables in a results folder. Raises FileNotFoundError if there is none."""
    found = [_load_table(profile, results, name) for name in choices("table") if (results / f"{name}.csv").is_file()]
    if not found:
        raise FileNotFoundError(f"{results} holds no table; make one first, e.g. `make table2 PROFILE={profile}`.")
    return found


def load_trained(results: Path, own_runs: Path, rows: Sequence[Row]) -> Iterator[Trained]:
    """The trained cells behind the tables, in the order of the rows, from what the results say of each."""
    cells = [(path.parent.name, read_json(path)) for path in sorted(results.glob("cells/*/*.json"))]
    for row in dict.fromkeys(rows):
        for model, cell in cells:
            if cell["method"] in row.methods and cell["dataset"] is not None:
                path = own_runs / model / cell["run"] / "metrics.jsonl"
                metrics = pd.read_json(path, lines=True) if path.is_file() else None
                yield Trained(f"{model}/{cell['run']}", row, f"{cell['dataset']}, {model}", cell["training"], metrics)


def _load_table(profile: str, results: Path, name: str) -> Table:
    cfg = compose([f"profile={profile}", f"table={name}"])
    frame = pd.read_csv(results / f"{name}.csv", dtype={"label": str, "rank": str, "seed": str})
    measured = frame[(frame.source == "measured") & (frame.seed == "mean")]
    summary = measured.assign(rank=measured["rank"].fillna(""), won=measured.won.astype(bool))
    text = (results / f"{name}.md").read_text(encoding="utf-8")
    notes = re.findall(r"^- (.*)$", text.partition("## Notes")[2], flags=re.MULTILINE)
    notes += unversioned(results, {method for row in grid.rows(cfg) for method in row.methods})
    columns = [column for column in cfg.table.columns if column in set(summary.column)]  # `DATASETS` leaves some out
    paper = beside(load_paper(name), [column for column in grid.averaged(cfg) if column in columns])
    shown = [*columns, AVERAGE, LOSS]
    return Table(cfg, name, cfg.table.title, grid.rows(cfg), shown, summary, paper, notes)


def unversioned(results: Path, methods: Collection[str]) -> list[str]:
    """A note on cells from before methods had versions: what their code did cannot be told from a number."""
    cells = [read_json(path) for path in sorted(results.glob("cells/*/*.json"))]
    mine = [cell["config"]["method"] for cell in cells if cell["method"] in methods]
    old = sum("version" not in method for method in mine)
    return [f"Version of the method: not recorded in {old} of {len(mine)} cells."] if old else []


def labels(results: Path) -> dict[str, str]:
    """The name that each benchmark's data gives itself."""
    cells = [read_json(path) for path in sorted(results.glob("cells/*/*.json"))]
    return {name: found["label"] for cell in cells for name, found in cell["evaluation"].items()}

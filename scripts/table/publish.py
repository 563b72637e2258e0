"""Published results: what a user has made, checked for its provenance and put where the repository keeps results."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from data_prep.storage import new_folder
from scripts.config import ROOT, choices
from scripts.table.rates import RATES

PUBLISHED = ROOT / "results" / "published"
NEEDED = ("python", "versions", "git", "code", "hardware", "started", "finished")  # of a cell's training


def results_to_read(own: Path, profile: str) -> Path:
    """The folder of a profile's results to show: one's own tables, or the published ones where there are none.

    own: the results folder of the config, e.g. `results`
    """
    mine, published = own / profile, PUBLISHED / profile
    return published if published.is_dir() and not any(mine.glob("*.csv")) else mine


def publish(results: Path, target: Path) -> list[str]:
    """Copy the tables in `results` and their cells to `target`; returns the names of the tables.

    Tables that `target` holds and `results` lacks stay. Raises FileNotFoundError if there is no table, ValueError for a
    table whose provenance is incomplete, or that has fewer seeds than the published one.
    """
    tables = [name for name in choices("table") if (results / f"{name}.csv").is_file()]
    if not tables:
        raise FileNotFoundError(f"{results} holds no table; make one first, e.g. `make table2`.")
    cells = sorted(results.glob("cells/*/*.json"))
    for name in tables:
        _check_table(results, target, name, [_json(path) for path in cells])
    with new_folder(target) as folder:
        if target.is_dir():
            shutil.copytree(target, folder, dirs_exist_ok=True)
        for path in [*_files(results, tables), *cells]:
            copy = folder / path.relative_to(results)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    return tables


def _check_table(results: Path, target: Path, name: str, cells: Sequence[dict[str, Any]]) -> None:
    methods, seeds = _rows(results / f"{name}.csv")
    mine = [cell for cell in cells if cell["method"] in methods]
    if lacking := methods - {cell["method"] for cell in mine}:
        raise ValueError(f"{results}: no file in cells/ tells how {', '.join(sorted(lacking))} of {name} came about.")
    for cell in mine:
        where = f"{results}, {cell['method']}, {cell['dataset']}, seed {cell['seed']}"
        training = cell["training"]
        if missing := [key for key in NEEDED if training.get(key) is None]:
            raise ValueError(f"{where}: its run does not record {', '.join(missing)}; train it again to publish it.")
        if training["git"].endswith("+changes"):
            raise ValueError(f"{where} was trained with uncommitted changes; commit, and train it again to publish it.")
    if (target / f"{name}.csv").is_file():
        lost = _rows(target / f"{name}.csv")[1] - seeds
        if lost:
            raise ValueError(
                f"{target}/{name}.csv has the seeds {', '.join(sorted(lost))} too; run them, or remove that file first."
            )


def _rows(table: Path) -> tuple[set[str], set[str]]:
    """The methods and the seeds that were measured for a table's CSV."""
    frame = pd.read_csv(table, dtype=str)
    measured = frame[(frame.source == "measured") & (frame.seed != "mean")]
    return set(measured.method), set(measured.seed)


def _files(results: Path, tables: Sequence[str]) -> Iterator[Path]:
    names = [f"{name}{end}" for name in tables for end in (".csv", ".md", ".png", "-times.json")]
    yield from (path for name in [*names, "claims.md", RATES] if (path := results / name).is_file())


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))

"""Published results: what a user has made, checked for its provenance and put where the repository keeps results."""

import shutil
from collections.abc import Iterator, Sequence
from math import isclose
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from data_prep.storage import new_folder, read_json
from scripts.config import ROOT, choices
from scripts.table.rates import RATES
from scripts.table.summary import AVERAGE, LOSS

PUBLISHED = ROOT / "results" / "published"
TIMES, CLAIMS = "-times.json", "claims.md"
ENDS = (".csv", ".md", ".png", TIMES)  # of the names of a table's files
NEEDED = ("python", "versions", "git", "code", "hardware", "started", "finished")  # of a cell's training
Line = dict[str, str]  # of a table's CSV


def results_to_read(own: Path, profile: str) -> Path:
    """The folder of a profile's results to show: one's own tables, or the published ones where there are none.

    own: the results folder of the config, e.g. `results`;  profile: or an experiment of it, e.g. `smol/rates=own`
    """
    mine, published = own / profile, PUBLISHED / profile
    return published if published.is_dir() and not any(mine.glob("*.csv")) else mine


def publish(results: Path, target: Path) -> list[str]:
    """Copy the tables in `results`, and the cells that they report, to `target`; returns the names of the tables.

    Tables that `target` holds and `results` lacks stay. A `claims.md` there does not, if `results` has none and one of
    its tables has other numbers.
    Raises FileNotFoundError if there is no table, and as `cells_behind`; ValueError for a cell whose provenance is
    incomplete, for a table with fewer rows or seeds than the published one, and for one that disagrees with its cells,
    also where it stays and the new cells would replace its own.
    """
    tables = tables_in(results)
    cells = {path: cell for name in tables for path, cell in cells_behind(results, name).items()}
    for cell in cells.values():
        _check_provenance(results, cell)
    for name in tables:
        _refuse_fewer(results, target, name)
    with new_folder(target) as folder:
        if target.is_dir():
            shutil.copytree(target, folder, dirs_exist_ok=True)
        for name in _replaced(results, target, tables):
            (folder / name).unlink(missing_ok=True)
        for path in [*_files(results, tables), *cells]:
            copy = folder / path.relative_to(results)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        for name in set(tables_in(folder)) - set(tables):  # they stay: their cells must not have been replaced
            cells_behind(folder, name)
    return tables


def tables_in(results: Path) -> list[str]:
    """The names of the tables in a results folder. Raises FileNotFoundError if there is none."""
    tables = [name for name in choices("table") if (results / f"{name}.csv").is_file()]
    if not tables:
        raise FileNotFoundError(f"{results} holds no table; make one first, e.g. `make table2`.")
    return tables


def cells_behind(results: Path, table: str) -> dict[Path, dict[str, Any]]:
    """The cell files that a table reports, with their content: those of the runs that its times file names.

    Each measured number of a seed, a score in percent or a loss in nats, is looked up in the cells of its method and
    seed. The average is not: it is of columns that are, and the CSV does not say of which.
    Raises FileNotFoundError without a times file, ValueError for a number that the cells do not hold.
    """
    times = results / f"{table}{TIMES}"
    if not times.is_file():
        raise FileNotFoundError(f"{times}, which names the runs of {table}, is not there; make the table again.")
    runs = read_json(times)["cells"]
    found = {path: cell for path in sorted(results.glob("cells/*/*.json")) if (cell := read_json(path))["run"] in runs}
    for line in _measured(results / f"{table}.csv"):
        own = [cell for cell in found.values() if (cell["method"], str(cell["seed"])) == (line["method"], line["seed"])]
        if line["column"] != AVERAGE and (other := _disagreement(line, own)):
            raise ValueError(
                f"{table}.csv, {line['method']}, seed {line['seed']}, {line['column']}, is {line['value']} over "
                f"{line['n_items']} items, but {other}; make the table again."
            )
    return found


def _disagreement(line: Line, own: Sequence[dict[str, Any]]) -> str | None:
    """What the cells of a line hold instead of its number, over as many items and to its digits; None: just that."""
    column, items = line["column"], line["n_items"]
    if column == LOSS:  # a mean over training sets, each a sum of 32-bit numbers
        held = [cell["training"]["metrics"]["eval_loss"] for cell in own]
    else:
        found = [result for cell in own for result in cell["evaluation"].values() if column in result["scores"]]
        held, items = [result["scores"][column] for result in found], str(sum(result["items"] for result in found))
    if not held:
        return "no cell of its runs holds it"
    digits = len(line["value"].partition(".")[2])
    if items == line["n_items"] and isclose(fmean(held), float(line["value"]), rel_tol=1e-6, abs_tol=10.0**-digits):
        return None
    return f"its cell holds {fmean(held):.{digits}f} over {items}"


def _check_provenance(results: Path, cell: dict[str, Any]) -> None:
    where = f"{results}, {cell['method']}, {cell['dataset']}, seed {cell['seed']}"
    training = cell["training"]
    if missing := [key for key in NEEDED if training.get(key) is None]:
        raise ValueError(f"{where}: its run does not record {', '.join(missing)}; train it again to publish it.")
    if training["git"].endswith("+changes"):
        raise ValueError(f"{where} was trained with uncommitted changes; commit, and train it again to publish it.")


def _refuse_fewer(results: Path, target: Path, table: str) -> None:
    published = target / f"{table}.csv"
    if not published.is_file():
        return
    theirs, mine = _measured(published), _measured(results / f"{table}.csv")
    for kind, key in (("rows", "method"), ("seeds", "seed")):
        if lost := {line[key] for line in theirs} - {line[key] for line in mine}:
            names = ", ".join(sorted(lost))
            raise ValueError(f"{published} has the {kind} {names} too; run them, or remove that file first.")


def _measured(table: Path) -> list[Line]:
    """The lines of a table's CSV with a number that was measured with one seed."""
    frame = pd.read_csv(table, dtype=str, keep_default_na=False)
    return frame[(frame.source == "measured") & (frame.seed != "mean") & (frame.value != "")].to_dict("records")


def _replaced(results: Path, target: Path, tables: Sequence[str]) -> Iterator[str]:
    """The files in `target` that belong to an earlier version of the tables."""
    yield from (f"{name}{end}" for name in tables for end in ENDS)
    pairs = [(target / f"{name}.csv", results / f"{name}.csv") for name in tables]
    if any(old.is_file() and old.read_bytes() != new.read_bytes() for old, new in pairs):
        yield CLAIMS


def _files(results: Path, tables: Sequence[str]) -> Iterator[Path]:
    names = [f"{name}{end}" for name in tables for end in ENDS]
    yield from (path for name in [*names, CLAIMS, RATES] if (path := results / name).is_file())

"""Train and evaluate what a table still misses, and write it."""

import sys
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path

from omegaconf import DictConfig

from data_prep import storage
from scripts.command import sentence
from scripts.table import collect, grid, local, notes, render
from scripts.table.experiment import results_folder
from scripts.table.launch import launch
from scripts.table.paper import beside, load_paper
from scripts.table.plot import plot
from scripts.table.summary import Entry, summarise


def train_missing(cfg: DictConfig, overrides: Sequence[str], cells: Sequence[grid.Cell]) -> list[str]:
    """Train the cells without a finished run; returns a line for each that failed. The others are finished and kept.

    One that was trained and not evaluated (`evaluation.when=cell`) has no line: `evaluate_finished` tries it again.
    """
    missing = grid.untrained(cells)
    print(f"{cfg.table.name}: {len(cells)} cells, {len(missing)} to train", file=sys.stderr)
    lines = _train(cfg, overrides, missing) if missing else []
    return [line for cell in grid.untrained(missing) for line in lines if _is_of(line, cell)]


def _train(cfg: DictConfig, overrides: Sequence[str], cells: Sequence[grid.Cell], again: bool = True) -> list[str]:
    """A line for each cell that failed.

    After a worker was killed, the unfinished cells go on from their last checkpoints: first together, and after another
    kill one by one, so that one cell that is killed again and again does not take others with it.
    """
    jobs = [grid.job(cell) for cell in cells]
    try:
        return launch(overrides, jobs, cfg.launcher, cfg.workers, evaluating=cfg.evaluation.when == "cell")
    except BrokenExecutor as error:
        if len(cells) == 1 and not again:
            return [f"{' '.join(grid.job(cells[0]))}: {sentence(error)}"]
    print("A worker was killed (out of memory?); its runs go on from their last checkpoints", file=sys.stderr)
    rest = grid.untrained(cells)
    groups = [rest] if again and rest else [[cell] for cell in rest]
    return [line for group in groups for line in _train(cfg, overrides, group, again=False)]


def evaluate_missing(cfg: DictConfig, cells: Sequence[grid.Cell]) -> dict[Path, list[Path]]:
    """Evaluate with one engine what is not evaluated yet; the result folders by run."""
    from scripts.cell.evaluation import evaluate_runs

    return evaluate_runs(cfg, {cell.path: cell.benchmarks for cell in cells}) if cells else {}


def evaluate_finished(
    cfg: DictConfig, overrides: Sequence[str], cells: Sequence[grid.Cell]
) -> tuple[dict[Path, list[Path]], list[str]]:
    """Evaluate what is not evaluated yet; returns the result folders by run, and a line for each cell that failed.

    Where the one engine for all fails, each cell is tried on its own, so that one adapter does not take the table with
    it. If the first two fail with the same error on their own, no cell is at fault, and the error is raised.
    """
    try:
        return evaluate_missing(cfg, cells), []
    except Exception as error:
        print(f"The evaluation of all cells together failed: {sentence(error)}", file=sys.stderr)
        first = cells[:2]
        alone = local.evaluate(overrides, [grid.job(cell) for cell in first], 1)
        if len(alone) == len(first) and all(line.endswith(sentence(error)) for line in alone):
            raise
    rest = local.evaluate(overrides, [grid.job(cell) for cell in cells[2:]], cfg.workers) if cells[2:] else []
    lines = [*alone, *rest]
    good = [cell for cell in cells if not any(_is_of(line, cell) for line in lines)]
    return evaluate_missing(cfg, good), lines


def _is_of(line: str, cell: grid.Cell) -> bool:
    """Whether a launcher's line about a failed job is about this cell."""
    return line.startswith(f"{' '.join(grid.job(cell))}: ")


def write(
    cfg: DictConfig,
    overrides: Sequence[str],
    cells: Sequence[grid.Cell],
    folders: Mapping[Path, Sequence[Path]],
    failed: Sequence[str] = (),
) -> None:
    """Render the table and the provenance of its cells into the results folder, and print the table.

    folders: of the evaluations, by run;  failed: lines of the cells that have no result
    """
    found = collect.results(cells, folders)
    per_task, labels = collect.per_task(found), collect.labels(found)
    remarks = [*notes.of(cfg, overrides, found), *(f"Failed: {line}" for line in failed)]
    stem = results_folder(cfg, overrides) / cfg.table.name
    files = drawn(cfg, collect.entries(found, cfg), per_task, labels, remarks)
    for result in found:
        name = f"{result.cell.method}-{result.cell.dataset or 'none'}-seed{result.cell.seed}.json"
        storage.write_json(stem.parent / "cells" / cfg.model.name / name, collect.provenance(result))
    storage.write_json(stem.with_name(f"{stem.name}-times.json"), notes.times(found))
    for suffix, content in files.items():
        storage.write_bytes(stem.with_suffix(suffix), content)
    print(f"{files['.md'].decode()}\n{stem.with_suffix('.md')}")


def drawn(
    cfg: DictConfig,
    entries: Mapping[str, Entry],
    per_task: Collection[str],
    labels: Mapping[str, str],
    remarks: Sequence[str],
) -> dict[str, bytes]:
    """The files of a table by their suffix: CSV, plot, and Markdown.

    entries: what each method reached;  per_task, labels: as `collect` gives them;  remarks: notes under the table
    """
    rows, columns, title = grid.rows(cfg), list(cfg.table.columns), cfg.table.title
    paper = beside(load_paper(cfg.table.name), grid.averaged(cfg))
    summary = summarise(rows, columns, entries, per_task)
    notes_below = [*remarks, *render.candidate_notes(rows, summary)]
    titles = render.titles(cfg, labels)
    return {
        ".csv": render.csv(cfg.table.name, summary, entries, paper).encode(),
        ".png": plot(title, rows, summary, paper),
        ".md": render.markdown(title, rows, columns, summary, paper, titles, notes_below).encode(),
    }

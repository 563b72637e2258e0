"""Train and evaluate what a table still misses, and write it."""

import sys
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path

from omegaconf import DictConfig

from data_prep import storage
from scripts.command import sentence
from scripts.table import grid
from scripts.table.launch import launch
from scripts.table.paper import PRINTED, load_paper
from scripts.table.plot import plot
from scripts.table.summary import summarise


def train_missing(cfg: DictConfig, overrides: Sequence[str], cells: Sequence[grid.Cell]) -> None:
    """Train the cells without a finished run. Exits with a list of the failed; the others are finished and kept."""
    missing = grid.untrained(cells)
    print(f"{cfg.table.name}: {len(cells)} cells, {len(missing)} to train", file=sys.stderr)
    failed = _train(cfg, overrides, missing) if missing else []
    if failed:
        sys.exit("\n".join([f"error: {len(failed)} of {len(missing)} runs failed:", *failed]))


def _train(cfg: DictConfig, overrides: Sequence[str], cells: Sequence[grid.Cell], again: bool = True) -> list[str]:
    """A line for each cell that failed. After a worker was killed, the unfinished cells go on from their last
    checkpoints: together, and the next time one by one, so that what is killed again and again is one cell."""
    try:
        return launch(overrides, [grid.job(cell) for cell in cells], cfg.launcher, cfg.workers)
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

    return evaluate_runs(cfg, {cell.path: cell.benchmarks for cell in cells})


def write(
    cfg: DictConfig, overrides: Sequence[str], cells: Sequence[grid.Cell], folders: dict[Path, list[Path]]
) -> None:
    """Render the table and the provenance of its cells into the results folder, and print the table."""
    from scripts.table import collect, notes, render

    folder = Path(cfg.results_dir) / cfg.profile / notes.variant(overrides)
    found = collect.results(cells, folders)
    entries = collect.entries(found, cfg.table.columns)
    rows = grid.rows(cfg)
    paper = load_paper(PRINTED / f"{cfg.table.name}.csv")
    summary = summarise(rows, cfg.table.columns, entries, collect.per_task(found))
    remarks = [*notes.of(cfg, overrides, found), *render.candidate_notes(rows, summary)]
    titles = render.titles(cfg.table.columns, collect.labels(found))
    text = render.markdown(cfg.table.title, rows, cfg.table.columns, summary, paper, titles, remarks)
    stem = folder / cfg.table.name
    (folder / "cells" / cfg.model.name).mkdir(parents=True, exist_ok=True)
    for result in found:
        name = f"{result.cell.method}-{result.cell.dataset or 'none'}-seed{result.cell.seed}.json"
        storage.write_json(folder / "cells" / cfg.model.name / name, collect.provenance(result))
    storage.write_json(stem.with_name(f"{stem.name}-times.json"), notes.times(found))
    storage.write_text(stem.with_suffix(".csv"), render.csv(cfg.table.name, summary, entries, paper))
    storage.write_bytes(stem.with_suffix(".png"), plot(cfg.table.title, rows, summary, paper))
    storage.write_text(stem.with_suffix(".md"), text)
    print(f"{text}\n{stem.with_suffix('.md')}")

"""Evaluate finished runs on benchmarks, with one engine for all of them.

python -m scripts.evaluate runs=[runs/smol/...] data=... [benchmark=[NAME,...]] [limit=40] [engine=vllm|hf]

Without `benchmark=` a run is tested on what its training set stands for (configs/dataset), a vanilla row on all that
`table` shows.
"""

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from scripts.cell import runs
from scripts.cell.evaluation import evaluate_runs, scores
from scripts.command import entry_point
from scripts.config import OF_A_RUN, given, refuse_lost
from scripts.table.grid import shown_benchmarks


@entry_point
def main(cfg: DictConfig) -> None:
    refuse_lost(given(), OF_A_RUN)
    if not cfg.runs:
        raise ValueError("runs=[] names no run; give finished run directories, e.g. runs=[runs/smol/...].")
    asked = any(override.startswith("benchmark=") for override in given())
    wanted = {Path(path): list(cfg.benchmark) if asked else _usual(Path(path), cfg) for path in cfg.runs}
    results = Table("run", "score", "percent")
    for run, folders in evaluate_runs(cfg, wanted).items():
        for folder in folders:
            for column, percent in scores(folder).items():
                results.add_row(run.name, column, f"{percent:.2f}")
    Console().print(results)


def _usual(path: Path, cfg: DictConfig) -> list[str]:
    run = runs.load(path)
    return list(run.cfg.dataset.benchmarks) if run.adapter else shown_benchmarks(cfg)


if __name__ == "__main__":
    main()

"""Reads finished and evaluated runs from disk: what the renderer needs, and a file of provenance per cell."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from eval import predictions
from eval.session import EVALUATION_CODE
from scripts.cell import runs
from scripts.cell.provenance import TRAINING_CODE
from scripts.table.grid import Cell
from scripts.table.summary import Entry

PATHS = ("data", "runs", "runs_dir", "cache_dir", "results_dir")  # of the machine, not of the experiment


@dataclass(frozen=True)
class Result:
    """A cell that is trained and evaluated; `folders` are those of its benchmarks, in the cell's order."""

    cell: Cell
    run: runs.Run
    folders: Sequence[Path]

    @cached_property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Content of `metrics.json` per benchmark."""
        return {
            name: _json(folder / "metrics.json")
            for name, folder in zip(self.cell.benchmarks, self.folders, strict=True)
        }

    @property
    def code(self) -> Iterator[tuple[str, str | None]]:
        """(package, key of its code) of the training and of each evaluation; None: an old run did not record it."""
        for info in (self.run.info, *self.metrics.values()):
            recorded = info.get("code", {})
            packages = EVALUATION_CODE if "scores" in info else TRAINING_CODE
            yield from ((package, recorded.get(package)) for package in packages)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of the training and of each benchmark's evaluation; of an interrupted one those of its last part."""
        timings = {
            name: folder / "timing.json" for name, folder in zip(self.cell.benchmarks, self.folders, strict=True)
        }
        evaluation = {name: _json(path)["seconds"] for name, path in timings.items() if path.exists()}
        return {"training": self.run.info.get("seconds", 0.0), **evaluation}


def results(cells: Iterable[Cell], folders: Mapping[Path, Sequence[Path]]) -> list[Result]:
    """The cells with what is on disk of them; `folders` as `scripts.cell.evaluation.evaluate_runs` returns them."""
    return [Result(cell, runs.load(cell.path), folders[cell.path]) for cell in cells]


def entries(found: Sequence[Result], columns: Sequence[str]) -> dict[str, Entry]:
    """What each method reached over its seeds, from the scores and predictions of its cells."""
    by_method: dict[str, list[Result]] = {}
    for result in found:
        by_method.setdefault(result.cell.method, []).append(result)
    return {method: _entry(method, own, columns) for method, own in by_method.items()}


def labels(found: Sequence[Result]) -> dict[str, str]:
    """The name that each benchmark's data gives itself: a stand-in is never called by the name of the real one."""
    return {name: metrics["label"] for result in found for name, metrics in result.metrics.items()}


def per_task(found: Sequence[Result]) -> set[str]:
    """The benchmarks whose score is a mean over tasks or languages."""
    return {name for result in found for name, metrics in result.metrics.items() if metrics["average"] == "tasks"}


def provenance(result: Result) -> dict[str, Any]:
    """What is needed to judge a cell: config, seed, versions, revision, hardware, seconds, losses, scores, counts."""
    config: Any = OmegaConf.to_container(result.run.cfg, resolve=True)
    return {
        "method": result.cell.method,
        "dataset": result.cell.dataset,
        "seed": result.cell.seed,
        "run": result.cell.path.name,
        "training": {key: value for key, value in result.run.info.items() if key not in ("name", "method", "dataset")},
        "evaluation": {name: _evaluation(metrics) for name, metrics in result.metrics.items()},
        "seconds": result.seconds,
        "config": {key: value for key, value in config.items() if key not in PATHS},
    }


def _evaluation(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metrics.items() if key != "tasks"}


def _entry(method: str, own: Sequence[Result], columns: Sequence[str]) -> Entry:
    scores: dict[int, dict[str, float]] = {}
    frames: dict[str, list[pd.DataFrame]] = {}
    for result in own:
        for name, folder in zip(result.cell.benchmarks, result.folders, strict=True):
            scores.setdefault(result.cell.seed, {}).update(result.metrics[name]["scores"])
            frames.setdefault(name, []).append(_items(folder))
    first = own[0].run
    return Entry(
        method=method,
        rank=_rank(first),
        params=first.info.get("trainable_parameters"),
        scores=pd.DataFrame.from_dict(scores, orient="index").reindex(columns=list(columns)),
        items={
            name: _mean(parts).loc[:, lambda f: f.columns.isin(["task", *columns])] for name, parts in frames.items()
        },
    )


def _rank(run: runs.Run) -> int | None:
    """The rank at which the adapter computes, as the exported LoRA has it: pure sharing's depends on the model."""
    exported = run.path / "lora" / "adapter_config.json"
    return _json(exported)["r"] if exported.exists() else None


def _items(folder: Path) -> pd.DataFrame:
    rows = predictions.read(folder / "predictions.jsonl").values()
    return pd.DataFrame([{"id": row["id"], "task": row["task"], **row["scores"]} for row in rows]).set_index("id")


def _mean(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Item scores averaged over seeds."""
    means = pd.concat([part.drop(columns="task") for part in parts]).groupby(level=0).mean()
    return means.assign(task=parts[0]["task"]).sort_index()


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))

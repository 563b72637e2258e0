"""Reads finished and evaluated runs from disk: what the renderer needs, and a file of provenance per cell."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from data_prep.storage import read_json
from eval import predictions
from eval.session import EVALUATION_CODE
from scripts.cell import runs, served
from scripts.cell.provenance import TRAINING_CODE
from scripts.table.grid import Cell, averaged
from scripts.table.summary import HELD_OUT, LOSS, Entry

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
            name: read_json(folder / "metrics.json")
            for name, folder in zip(self.cell.benchmarks, self.folders, strict=True)
        }

    @cached_property
    def held_out(self) -> pd.DataFrame | None:
        """Of each validation example, with the finished adapter: `loss`, the sum in nats, and `tokens`, its labels.

        None for a vanilla row, and for a run from before this was kept.
        """
        path = self.run.path / runs.HELD_OUT_LOSSES
        return pd.read_json(path, lines=True) if path.is_file() else None

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
        evaluation = {name: read_json(path)["seconds"] for name, path in timings.items() if path.exists()}
        return {"training": self.run.info.get("seconds", 0.0), **evaluation}


def results(cells: Iterable[Cell], folders: Mapping[Path, Sequence[Path]]) -> list[Result]:
    """The cells with what is on disk of them; `folders` as `scripts.cell.evaluation.evaluate_runs` returns them."""
    return [Result(cell, runs.load(cell.path), folders[cell.path]) for cell in cells]


def entries(found: Sequence[Result], cfg: DictConfig) -> dict[str, Entry]:
    """What each method reached over its seeds, from the scores, predictions and validation losses of its cells.

    In the order of the table's rows and of the seeds, whatever the order of the cells.
    """
    by_method: dict[str, list[Result]] = {}
    for result in sorted(found, key=lambda result: (result.cell.seed, result.cell.dataset or "")):
        by_method.setdefault(result.cell.method, []).append(result)
    methods = [method for row in cfg.table.rows for method in row.methods if method in by_method]
    return {method: _entry(method, by_method[method], cfg) for method in methods}


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


def _entry(method: str, own: Sequence[Result], cfg: DictConfig) -> Entry:
    columns, average = list(cfg.table.columns), averaged(cfg)
    scores: dict[int, dict[str, float]] = {}
    frames: dict[str, dict[int, pd.DataFrame]] = {}
    for result in own:
        for name, folder in zip(result.cell.benchmarks, result.folders, strict=True):
            scores.setdefault(result.cell.seed, {}).update(result.metrics[name]["scores"])
            frames.setdefault(name, {})[result.cell.seed] = _items(folder)
    losses, examples = validation(own, list(cfg.table.datasets))
    first = own[0].run
    return Entry(
        method=method,
        rank=served.rank(first),
        params=first.info.get("trainable_parameters"),
        scores=pd.DataFrame.from_dict(scores, orient="index").reindex(columns=columns).assign(**{LOSS: losses}),
        items={name: _by_seed(parts, columns) for name, parts in frames.items()} | examples,
        averaged=average,
    )


def validation(own: Sequence[Result], datasets: Sequence[str]) -> tuple[pd.Series, dict[str, pd.DataFrame]]:
    """The validation loss of each seed that has it for all training sets, and the examples behind it.

    The loss of a set is a ratio R: the sum of the losses over the number of labelled tokens. An example stands for
    R + (loss - R tokens) / (mean of tokens), with the R of all seeds together. The mean of these is the ratio of a
    seed, and their spread is that of a ratio (Cochran, Sampling Techniques, chapter 6).
    """
    frames = [_examples(result) for result in own if result.held_out is not None]
    if not frames:
        return pd.Series(dtype=float), {}
    whole = pd.concat(frames)
    sums = whole.groupby(["seed", "task"])[["loss", "tokens"]].sum()
    ratios = (sums.loss / sums.tokens).unstack("task").reindex(columns=datasets).dropna()  # (seeds, training sets)
    if ratios.empty:
        return pd.Series(dtype=float), {}
    kept = whole[whole.index.isin(ratios.index, level="seed")]
    ratio, tokens = kept.task.map(ratios.mean()), kept.groupby("task").tokens.transform("mean")
    items = kept.assign(**{LOSS: ratio + (kept.loss - ratio * kept.tokens) / tokens}).set_index("task", append=True)
    wide = items[[LOSS]].unstack("seed").reorder_levels(["task", "id"]).sort_index()
    return ratios.mean(axis=1), {HELD_OUT: wide}


def _examples(result: Result) -> pd.DataFrame:
    """The validation examples of a cell: index (seed, id), `task` its training set, `loss` and `tokens`."""
    assert result.held_out is not None
    names = [f"{result.cell.dataset}/{result.run.info['data']['key']}/{n}" for n in range(len(result.held_out))]
    index = pd.MultiIndex.from_product([[result.cell.seed], names], names=["seed", "id"])
    return result.held_out.set_index(index).assign(task=result.cell.dataset)


def _items(folder: Path) -> pd.DataFrame:
    rows = predictions.read(folder / "predictions.jsonl").values()
    return pd.DataFrame([{"id": row["id"], "task": row["task"], **row["scores"]} for row in rows]).set_index("id")


def _by_seed(parts: Mapping[int, pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    """The scores of all seeds side by side: index (task, id), columns (column, seed), in an order no file decides."""
    indexed = {seed: part.reset_index().set_index(["task", "id"]) for seed, part in parts.items()}
    own = [column for column in columns if column in next(iter(indexed.values()))]
    whole = pd.concat({seed: part[own] for seed, part in indexed.items()}, axis=1, names=["seed", "column"])
    return whole.swaplevel(axis=1).sort_index().sort_index(axis=1)

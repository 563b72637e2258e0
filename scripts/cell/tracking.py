"""Weights & Biases: one run per cell, from training to evaluation; offline unless a key is set, never in the way.

A training, its resumption and an evaluation are parts of one W&B run, whose id is the name of the run directory.
Offline, each part is a folder of its own in `<run>/wandb`. Each is marked as a resumption, so `wandb sync` joins them.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm
from transformers import TrainerCallback

from data_prep.storage import read_json
from eval import predictions
from eval.benchmarks import Item, spread
from scripts.cell import runs

SECONDS_TO_CONNECT = 20
STEP = "train/global_step"
ROWS = 200  # of a predictions table, spread over the benchmark's tasks


class Tracker:
    """The W&B run of a cell, or none. The first error of W&B becomes a warning on stderr, and no more is sent then."""

    def __init__(self, run: Any = None) -> None:
        self._run = run
        self.is_on = run is not None  # there is a W&B run, and it has taken everything so far

    def do(self, what: str, action: Callable[[Any], object]) -> None:
        """Call `action` with the W&B run if it is on.   what: for the warning, e.g. `logging`"""
        if not self.is_on:
            return
        try:
            action(self._run)
        except Exception as error:  # whatever its type: a tracker must not end a run
            self.is_on = False
            _warn(f"{what} failed", error)

    def summarize(self, results: dict[str, Any]) -> None:
        """Put the final numbers of a training into the summary."""
        self.do("the summary", lambda run: run.summary.update(results))

    def finish(self, failed: bool) -> None:
        """Close the run, also after an error: what this process logs next would go into a run left open."""
        try:
            if self._run is not None:
                self._run.finish(exit_code=int(failed))
        except Exception as error:
            if self.is_on:
                _warn("finishing failed", error)
            self.is_on = False


@contextmanager
def tracked(cfg: DictConfig, path: Path) -> Iterator[Tracker]:
    """A W&B run around a training or an evaluation.

    `WANDB_MODE` (online, offline, disabled) decides; unset, it is offline without `WANDB_API_KEY`. Files go to
    `<run>/wandb`. If W&B cannot even be started, the tracker takes nothing.
    """
    tracker = Tracker(_started(cfg, path))
    failed = True
    try:
        yield tracker
        failed = False
    finally:
        tracker.finish(failed)


class Curves(TrainerCallback):
    """Logs what the trainer logs, and `train/examples_per_second` since its last log, without validation and saving."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._begun, self._seconds, self._steps = 0.0, 0.0, 0

    def on_train_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self._tracker.do("logging", lambda run: run.define_metric("*", step_metric=STEP))

    def on_step_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self._begun = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self._seconds += time.monotonic() - self._begun
        self._steps += 1

    def on_log(self, args, state, control, logs=None, **kwargs):  # type: ignore[no-untyped-def]
        line = {_metric(name): value for name, value in (logs or {}).items()} | {STEP: state.global_step}
        if self._steps:
            examples = self._steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            line["train/examples_per_second"] = examples / self._seconds
            self._seconds, self._steps = 0.0, 0
        self._tracker.do("logging", lambda run: run.log(line))


def log_evaluation(run: runs.Run) -> None:
    """Put the scores and a predictions table of each evaluation of a run on its W&B run, if one of them is new.

    Scores are `score/<table column>`, in percent. Those of the rows that the ablation compares are also
    `ablation/<column>`, since a panel shows the runs that have its metric. Old results are sent again, since
    `wandb sync` keeps the summary of the last part only.
    """
    found = sorted(run.path.glob("eval/*/metrics.json"), key=_time)
    receipt = run.path / "wandb" / "evaluation.sent"  # as old as the newest result that was sent
    if not found or _mode() == "disabled" or (receipt.exists() and _time(receipt) >= _time(found[-1])):
        return
    newest = _time(found[-1])  # one that comes while these are sent must not be older than the receipt
    with tracked(run.cfg, run.path) as tracker:
        tracker.summarize(_trained(run.info))
        for path in found:
            tracker.do("logging an evaluation", partial(_send, path=path, ablation=is_ablation(run.cfg)))
    if tracker.is_on:
        receipt.touch()
        os.utime(receipt, ns=(newest, newest))


def _send(run: Any, path: Path, ablation: bool) -> None:
    metrics = read_json(path)
    for kind in ("score", "ablation") if ablation else ("score",):
        run.summary.update({f"{kind}/{column}": value for column, value in metrics["scores"].items()})
    run.summary.update({f"items/{metrics['label']}": metrics["items"]})
    run.log({f"predictions/{metrics['label']}": _table(path.parent)})


def row(cfg: DictConfig) -> DictConfig | None:
    """The row of the config's table that its method fills, if it has one."""
    return next((row for row in cfg.table.rows if cfg.method.name in row.methods), None)


def is_ablation(cfg: DictConfig) -> bool:
    """Whether the method's row is part of the table's ablation (`ablation: true` in its yaml)."""
    mine = row(cfg)
    return mine is not None and mine.get("ablation", False)


def _started(cfg: DictConfig, path: Path) -> Any:
    """The W&B run of a cell: online if it can be, else offline. None if it is disabled, or if neither works."""
    modes = {"online": ("online", "offline"), "disabled": ()}.get(_mode(), (_mode(),))
    for mode in modes:
        try:
            return _init(cfg, path, mode)
        except Exception as error:  # of any type: a broken installation raises others than W&B's own
            _warn(f"starting {mode} failed", error)
    return None


def _init(cfg: DictConfig, path: Path, mode: str) -> Any:
    import wandb

    mine = row(cfg)
    return wandb.init(
        mode=mode,  # type: ignore[arg-type]
        project=cfg.wandb.project,
        group=cfg.wandb.group,
        job_type=f"{mine.label} {mine.rank or ''}".strip() if mine else cfg.method.name,
        name=runs.name(cfg),
        id=path.name,
        resume="allow",
        tags=[cfg.profile, *_subject(cfg)],
        config=OmegaConf.to_container(cfg, resolve=True),  # type: ignore[arg-type]
        dir=path,
        settings=wandb.Settings(
            silent=mode == "offline",
            init_timeout=SECONDS_TO_CONNECT,
            console="off",
            x_save_requirements=mode == "online",  # to list all packages takes a second a run; run.json has ours
        ),
    )


def _warn(what: str, error: Exception) -> None:
    text = " ".join(str(error).split()) or type(error).__name__
    tqdm.write(f"W&B: {what} ({text}); the run goes on without it.", file=sys.stderr)


def _metric(name: str) -> str:
    """W&B's name of a metric of the trainer: `eval/loss` of `eval_loss`, `train/loss` of `loss`."""
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"


def _subject(cfg: DictConfig) -> list[str]:
    """The tags of a trained cell: its dataset, and its budget as the LoRA of as many parameters. None if untrained."""
    if cfg.method.config is None:
        return []
    mine = row(cfg)
    rank = cfg.method.get("equivalent_rank", cfg.method.r)
    budget = (mine and mine.get("against")) or f"lora_r{rank}"
    return [cfg.dataset.name, f"budget {budget}"]


def _mode() -> str:
    if os.environ.get("RANK", "0") != "0":  # of several processes that train one cell, the first one logs
        return "disabled"
    return os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")


def _trained(info: dict[str, Any]) -> dict[str, Any]:
    """What the training left in the summary; nothing of a vanilla row."""
    results = {key: info[key] for key in ("trainable_parameters", "seconds", "metrics", "data") if key in info}
    losses = results.get("metrics", {})
    return results | {f"{kind}/loss": losses[key] for kind, key in (("train", "loss"), ("eval", "eval_loss")) if losses}


def _time(path: Path) -> int:
    return path.stat().st_mtime_ns


def _table(folder: Path) -> Any:
    """The first sample of up to `ROWS` items; correct: every score of the item is 100 percent."""
    import wandb

    rows = predictions.read(folder / "predictions.jsonl")
    chosen = spread([Item(row["id"], row["task"], row["prompt"], row["gold"]) for row in rows.values()], ROWS)
    table = wandb.Table(columns=["id", "task", "prompt", "output", "parsed", "expected", "correct", "scores"])
    for item in chosen:
        found = rows[item.id]
        texts = map(_text, (found["outputs"][0], found["predictions"][0], item.gold))
        correct = min(found["scores"].values()) >= 100
        table.add_data(item.id, item.task, item.prompt, *texts, correct, _text(found["scores"]))
    return table


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

"""Weights & Biases: one run per cell, from training to evaluation; offline unless a key is set, never in the way.

The id of a W&B run is the name of the run directory, and each part (a training, its resumption, an evaluation) resumes
that id. Offline a part is a folder of its own in `<run>/wandb`; `wandb sync` joins them, as each says that it resumes.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from transformers import TrainerCallback

from eval import predictions
from eval.benchmarks import Item, spread
from scripts.cell import runs

SECONDS_TO_CONNECT = 20
ROWS = 200  # of a predictions table, spread over the benchmark's tasks


@contextmanager
def tracked(cfg: DictConfig, path: Path) -> Iterator[str]:
    """A W&B run around a training; yields what the trainer shall report to (`wandb`, or `none` if it is disabled).

    `WANDB_MODE` (online, offline, disabled) decides; unset, it is offline without `WANDB_API_KEY`. Files go to
    `<run>/wandb`.
    """
    if _mode() == "disabled":
        yield "none"
        return
    with _started(cfg, path):
        yield "wandb"


class Throughput(TrainerCallback):
    """Logs `train/examples_per_second`, over the steps since the last log; validation and saving are left out."""

    def __init__(self) -> None:
        self._begun, self._seconds, self._steps = 0.0, 0.0, 0

    def on_step_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self._begun = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self._seconds += time.monotonic() - self._begun
        self._steps += 1

    def on_log(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        run = _current_run()
        if run is not None and self._steps:
            examples = self._steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            run.log({"train/examples_per_second": examples / self._seconds, "train/global_step": state.global_step})
            self._seconds, self._steps = 0.0, 0


def summarize(results: dict[str, Any]) -> None:
    """Put the final numbers on the current W&B run, if there is one."""
    run = _current_run()
    if run is not None:
        run.summary.update(results)


def log_evaluation(run: runs.Run) -> None:
    """Put the scores and a predictions table of each evaluation of a run on its W&B run, if one of them is new.

    Scores are `score/<table column>`, in percent; those of the rows that the ablation compares are `ablation/<column>`
    too, since a panel shows the runs that have its metric. Old results go along: where `wandb sync` joins parts, the
    summary of the last one replaces the others.
    """
    found = sorted(run.path.glob("eval/*/metrics.json"), key=_time)
    receipt = run.path / "wandb" / "evaluation.sent"  # as old as the last sending
    if not found or _mode() == "disabled" or (receipt.exists() and _time(receipt) >= _time(found[-1])):
        return
    with _started(run.cfg, run.path) as tracker:
        tracker.summary.update(_trained(run.info))
        for path in found:
            metrics = json.loads(path.read_text(encoding="utf-8"))
            for kind in ("score", "ablation") if is_ablation(run.cfg) else ("score",):
                tracker.summary.update({f"{kind}/{column}": value for column, value in metrics["scores"].items()})
            tracker.summary.update({f"items/{metrics['label']}": metrics["items"]})
            tracker.log({f"predictions/{metrics['label']}": _table(path.parent)})
    receipt.touch()


def row(cfg: DictConfig) -> DictConfig | None:
    """The row of the config's table that its method fills, if it has one."""
    return next((row for row in cfg.table.rows if cfg.method.name in row.methods), None)


def is_ablation(cfg: DictConfig) -> bool:
    """Whether the method's row is part of the table's ablation (`ablation: true` in its yaml)."""
    mine = row(cfg)
    return mine is not None and mine.get("ablation", False)


def _started(cfg: DictConfig, path: Path) -> Any:
    import wandb

    mine = row(cfg)

    def start(mode: str) -> Any:
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
            settings=wandb.Settings(silent=mode == "offline", init_timeout=SECONDS_TO_CONNECT, console="off"),
        )

    try:
        return start(_mode())
    except wandb.Error as error:
        print(f"W&B cannot be reached ({error}); logging offline to {path / 'wandb'}", file=sys.stderr)
        return start("offline")


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


def _current_run() -> Any:
    wandb = sys.modules.get("wandb")
    return wandb and wandb.run


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

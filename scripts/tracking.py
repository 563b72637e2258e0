"""Weights & Biases: one run per cell, offline unless a key is set; a missing network never stops a training."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from scripts import runs

SECONDS_TO_CONNECT = 20


@contextmanager
def tracked(cfg: DictConfig, path: Path) -> Iterator[str]:
    """A W&B run around a training; yields what the trainer shall report to (`wandb`, or `none` if it is disabled).

    `WANDB_MODE` (online, offline, disabled) decides; unset, it is offline without `WANDB_API_KEY`. Files go to
    `<run>/wandb`.
    """
    mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
    if mode == "disabled":
        yield "none"
        return
    with _started(cfg, path, mode):
        yield "wandb"


def summarize(results: dict[str, Any]) -> None:
    """Put the final numbers on the current W&B run, if there is one."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.run.summary.update(results)


def _started(cfg: DictConfig, path: Path, mode: str) -> Any:
    import wandb

    def start(mode: str) -> Any:
        return wandb.init(
            mode=mode,  # type: ignore[arg-type]
            project=cfg.wandb.project,
            group=cfg.wandb.group,
            name=runs.name(cfg),
            id=path.name if mode == "online" else None,  # a resumed training continues its curve
            resume="allow" if mode == "online" else None,
            tags=[cfg.profile, cfg.dataset.name, f"budget {cfg.method.get('equivalent_rank') or cfg.method.r}"],
            config=OmegaConf.to_container(cfg, resolve=True),  # type: ignore[arg-type]
            dir=path,
            settings=wandb.Settings(silent=mode == "offline", init_timeout=SECONDS_TO_CONNECT, console="off"),
        )

    try:
        return start(mode)
    except wandb.Error as error:
        print(f"W&B cannot be reached ({error}); logging offline to {path / 'wandb'}", file=sys.stderr)
        return start("offline")

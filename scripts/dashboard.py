"""A W&B workspace that compares the runs: score against parameters, losses by method, the ablation.

python -m scripts.dashboard table=table2      (or `make dashboard TABLE=table2`)
"""

import os

import wandb
from omegaconf import DictConfig

from scripts.command import entry_point
from scripts.table.workspace import workspace


@entry_point
def main(cfg: DictConfig) -> None:
    if not os.environ.get("WANDB_API_KEY"):
        raise ValueError(
            "WANDB_API_KEY is not set, and a W&B workspace needs it; `make report` writes the same plots without one."
        )
    try:
        entity = os.environ.get("WANDB_ENTITY") or str(wandb.Api().default_entity)
        print(workspace(entity, cfg.wandb.project, cfg.table.name, cfg.table.columns).save().url)
    except wandb.Error as error:
        raise ConnectionError(f"W&B did not take the workspace: {error}; `make report` needs no W&B.") from error


if __name__ == "__main__":
    main()

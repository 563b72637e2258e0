"""A W&B workspace that compares the runs: score against parameters, losses by method, the ablation.

python -m scripts.dashboard table=table2      (or `make dashboard TABLE=table2`)
"""

import os
from collections.abc import Sequence

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from omegaconf import DictConfig

from scripts.errors import entry_point

ROW = wr.Metric("JobType")  # the row of the table, as scripts.tracking names it


def workspace(entity: str, project: str, table: str, columns: Sequence[str]) -> ws.Workspace:
    """The workspace for one table; nothing is sent before its `save()`.

    columns: of the table; each has panels of its own, as a run is tested only on what its training set stands for
    """
    parameters = wr.SummaryMetric("trainable_parameters")
    scatters = [
        wr.ScatterPlot(title=column, x=parameters, y=wr.SummaryMetric(f"score/{column}"), log_x=True)
        for column in columns
    ]
    losses = [_by_row("training loss", "train/loss"), _by_row("validation loss", "eval/loss")]
    bars = [wr.BarPlot(title=column, metrics=[f"ablation/{column}"], groupby=ROW) for column in columns]
    costs = [
        _by_row("learning rate", "train/learning_rate"),
        _by_row("examples per second", "train/examples_per_second"),
        _by_row("memory, GiB", "train/memory_gib"),
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"MoS, {table}",
        sections=[
            ws.Section(name="Score against trainable parameters", panels=scatters, is_open=True),
            ws.Section(name="Loss by method", panels=losses, is_open=True),
            ws.Section(name="Ablation", panels=bars, is_open=True),
            ws.Section(name="Learning rate, throughput, memory", panels=costs),
        ],
        runset_settings=ws.RunsetSettings(filters=f"Group = '{table}'", groupby=[ws.Metric("JobType")]),
    )


def _by_row(title: str, metric: str) -> wr.LinePlot:
    return wr.LinePlot(
        title=title, x="train/global_step", y=[metric], groupby=ROW, groupby_aggfunc="mean", groupby_rangefunc="minmax"
    )


@entry_point
def main(cfg: DictConfig) -> None:
    if not os.environ.get("WANDB_API_KEY"):
        raise ValueError(
            "WANDB_API_KEY is not set, and a W&B workspace needs it; `make report` writes the same plots without one."
        )
    try:
        entity = os.environ.get("WANDB_ENTITY") or wandb.Api().default_entity
        print(workspace(entity, cfg.wandb.project, cfg.table.name, cfg.table.columns).save().url)
    except wandb.Error as error:
        raise ConnectionError(f"W&B did not take the workspace: {error}; `make report` needs no W&B.") from error


if __name__ == "__main__":
    main()

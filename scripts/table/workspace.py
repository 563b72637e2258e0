"""A W&B workspace that compares the runs: score against parameters, losses by method, the ablation."""

from collections.abc import Mapping, Sequence
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

ROW = wr.Metric("JobType")  # the row of the table, as scripts.cell.tracking names it


def workspace(entity: str, project: str, table: str, columns: Sequence[str]) -> ws.Workspace:
    """The workspace for one table; nothing is sent before its `save()`.

    columns: of the table; each has panels of its own, as a run is tested only on what its training set stands for
    """
    parameters = wr.SummaryMetric("trainable_parameters")
    scatters: list[Any] = [
        wr.ScatterPlot(title=column, x=parameters, y=wr.SummaryMetric(f"score/{column}"), log_x=True)
        for column in columns
    ]
    bars: list[Any] = [wr.BarPlot(title=column, metrics=[f"ablation/{column}"], groupby=ROW) for column in columns]
    losses = {"training loss": "train/loss", "validation loss": "eval/loss"}
    costs = {
        "learning rate": "train/learning_rate",
        "examples per second": "train/examples_per_second",
        "memory, GiB": "train/memory_gib",
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"MoS, {table}",
        sections=[
            ws.Section(name="Score against trainable parameters", panels=scatters, is_open=True),
            ws.Section(name="Loss by method", panels=_by_row(losses), is_open=True),
            ws.Section(name="Ablation", panels=bars, is_open=True),
            ws.Section(name="Learning rate, throughput, memory", panels=_by_row(costs)),
        ],
        runset_settings=ws.RunsetSettings(filters=f"Group = '{table}'", groupby=[ws.Metric("JobType")]),
    )


def _by_row(metrics: Mapping[str, str]) -> list[Any]:
    """A curve per row over the steps for each title and metric: the mean over its runs, and their range."""
    style: dict[str, Any] = {
        "x": "train/global_step",
        "groupby": ROW,
        "groupby_aggfunc": "mean",
        "groupby_rangefunc": "minmax",
    }
    return [wr.LinePlot(title=title, y=[metric], **style) for title, metric in metrics.items()]

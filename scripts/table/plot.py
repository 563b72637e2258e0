"""Average score against trainable parameters, as PNG."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.table.figures import scale_parameters
from scripts.table.grid import Row
from scripts.table.paper import printed_point
from scripts.table.summary import AVERAGE, reported


def plot(title: str, rows: Sequence[Row], summary: pd.DataFrame, paper: pd.DataFrame) -> bytes:
    """Average score against trainable parameters as PNG, measured and the paper's in panels of their own.

    A colour is a row, in both panels; vanilla rows, which train nothing, are dashed lines. A row that the paper lacks
    is in the first panel only.
    """
    figure = Figure(figsize=(12, 5), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, name in zip(axes, ["measured, 95% intervals", "paper"], strict=True):
        axis.set(title=name, xlabel="trainable parameters", ylabel="average score, percent")
        axis.grid(alpha=0.3)
    drawn: tuple[list[float], list[float]] = ([], [])  # the parameters in each panel
    for i, row in enumerate(rows):
        style = {"color": f"C{i}", "marker": "os^D"[i // 10 % 4], "label": row.name}
        if (point := printed_point(paper, row)) is not None:
            _point(axes[1], style, drawn[1], *point)
        best = reported(summary, row)
        if not best.empty and not np.isnan(best.loc[AVERAGE, "value"]):
            line = best.loc[AVERAGE]
            _point(axes[0], style, drawn[0], line["params"], line["value"])
            axes[0].vlines(line["params"], line["ci_low"], line["ci_high"], color=style["color"], alpha=0.5)
    for axis, sizes in zip(axes, drawn, strict=True):
        scale_parameters(axis, sizes)
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside right center", fontsize=8)
    figure.suptitle(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def _point(axis: Axes, style: Mapping[str, Any], drawn: list[float], params: float | None, value: float) -> None:
    if params is None or np.isnan(params):
        axis.axhline(value, linestyle="--", linewidth=1, color=style["color"], label=style["label"])
    else:
        drawn.append(params)
        axis.plot(params, value, linestyle="none", **style)

"""Average score against trainable parameters, as PNG."""

import io
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.table.figures import scale_parameters
from scripts.table.grid import Row
from scripts.table.paper import printed_point
from scripts.table.summary import AVERAGE, drawn, reported

Point = tuple[dict[str, Any], float | None, float, float, float]  # style, parameters, average, its interval's ends


def plot(title: str, rows: Sequence[Row], summary: pd.DataFrame, paper: pd.DataFrame) -> bytes:
    """Average score against trainable parameters as PNG, measured and the paper's in panels of their own.

    A colour is a row, in both panels; vanilla rows, which train nothing, are dashed lines. A row that the paper lacks
    is in the first panel only, and a panel without any row is left out.
    """
    styles = [{"color": f"C{i}", "marker": "os^D"[i // 10 % 4], "label": row.name} for i, row in enumerate(rows)]
    points = [("measured, 95% intervals", _measured(rows, styles, summary)), ("paper", _printed(rows, styles, paper))]
    panels = [(name, found) for name, found in points if found] or points[:1]
    figure = Figure(figsize=(6 * len(panels), 5), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (name, found) in zip(axes, panels, strict=True):
        axis.set(title=name, xlabel="trainable parameters", ylabel="average score, percent")
        axis.grid(alpha=0.3)
        _draw(axis, found)
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside right center", fontsize=8)
    figure.suptitle(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def _measured(rows: Sequence[Row], styles: Sequence[dict[str, Any]], summary: pd.DataFrame) -> list[Point]:
    found = []
    for row, style in zip(rows, styles, strict=True):
        best = reported(summary, row)
        if not best.empty and not pd.isna(best.loc[AVERAGE, "value"]):
            found.append((style, *drawn(best.loc[AVERAGE])))
    return found


def _printed(rows: Sequence[Row], styles: Sequence[dict[str, Any]], paper: pd.DataFrame) -> list[Point]:
    points = [(style, printed_point(paper, row)) for row, style in zip(rows, styles, strict=True)]
    return [(style, point[0], point[1], point[1], point[1]) for style, point in points if point is not None]


def _draw(axis: Axes, points: Sequence[Point]) -> None:
    for style, params, value, low, high in points:
        if params is None:
            axis.axhline(value, linestyle="--", linewidth=1, color=style["color"], label=style["label"])
        else:
            axis.plot(params, value, linestyle="none", **style)
            axis.vlines(params, low, high, color=style["color"], alpha=0.5)
    scale_parameters(axis, [params for _, params, *_ in points if params is not None])

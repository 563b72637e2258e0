"""The figure of a study: what each row has stored, and its bits per parameter, against its trainable parameters."""

import io
import itertools
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.study.summary import Line

STYLE: dict[Any, Any] = {"svg.hashsalt": "capacity", "svg.fonttype": "none", "font.size": 9}
# The colours of the curves, LoRA's first; after the last it begins anew. Other rows have colours of their own.
CURVES = ("#3f86d8", "#e0523c", "#1f7a4d", "#6a2c91", "#b8860b", "#444444")
OTHERS = ("#7d9b2f", "#9268d4", "#cf8a1c", "#2a9d8f", "#d97fb0", "#a5674a", "#4fb3d9", "#6b7fa8", "#b29a76", "#8b8f98")
MARKERS = "sD^vP*X"
SPREAD = 0.06  # how far apart rows of one count are drawn, as a share of the count


def draw(lines: Sequence[Line], kind: str) -> bytes:
    """kind: svg or png. The same results give the same bytes."""
    shown = [line for line in lines if line.recall.count]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 4.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        _panel(left, shown, "stored", "facts stored, percent of their bits")
        _panel(right, shown, "bits", "bits per trainable parameter")
        figure.legend(*left.get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
        figure.suptitle("Facts stored against trainable parameters: means and 95% intervals over seeds")
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=120, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return buffer.getvalue()


def _panel(axes: Axes, lines: Sequence[Line], key: str, title: str) -> None:
    axes.set(xlabel="trainable parameters; rows of one count side by side", ylabel=title, xscale="log")
    axes.grid(alpha=0.25)
    axes.margins(x=0.12)  # room for the labels
    names = dict.fromkeys(line.row.curve for line in lines if line.row.curve)
    for name, colour in zip(names, itertools.cycle(CURVES), strict=False):
        own = sorted((line for line in lines if line.row.curve == name), key=lambda line: line.parameters or 0)
        _points(axes, own, key, {"color": colour, "marker": "o", "label": name, "zorder": 3}, 1.0)
        for line in own:
            end = (line.parameters or 0, getattr(line, key).mean)
            axes.annotate(line.row.label, end, (4, -10), textcoords="offset points", color=colour, fontsize=7)
    for i, line in enumerate(line for line in lines if not line.row.curve):
        style = {"color": OTHERS[i % len(OTHERS)], "marker": MARKERS[i // len(OTHERS)], "label": line.row.label}
        alike = [other for other in lines if not other.row.curve and other.parameters == line.parameters]
        _points(axes, [line], key, style, 1 + SPREAD * (alike.index(line) + 1))


def _points(axes: Axes, lines: Sequence[Line], key: str, style: dict[str, Any], shift: float) -> None:
    """Points of one style with their intervals, joined by a line."""
    places = [(line.parameters or 0) * shift for line in lines]
    found = [getattr(line, key) for line in lines]
    axes.plot(places, [estimate.mean for estimate in found], markersize=5, linewidth=1.2, **style)
    for place, estimate in zip(places, found, strict=True):
        if estimate.known:
            axes.vlines(place, estimate.low, estimate.high, color=style["color"], alpha=0.6)

"""The drawings of the page of results, as inline SVG."""

import io
import re
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator

from scripts.table.grid import Row
from scripts.table.written import Table, Trained

# Of a middle lightness, to be seen on a white and on a dark page. The first two are for the vanilla rows.
PALETTE = (
    "#8b8f98", "#b29a76", "#3f86d8", "#2a9d8f", "#9268d4", "#cf8a1c",
    "#e0523c", "#d97fb0", "#7d9b2f", "#4fb3d9", "#a5674a", "#6b7fa8",
)  # fmt: skip
MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆"}  # as drawn, and as text
DASHES = dict(zip(MARKERS, ("-", "--", ":", "-."), strict=True))
INK = "#0a0b0c"  # what is drawn in this colour takes the colour of the page's text
FIGURES: dict[Any, Any] = {
    "figure.figsize": (4.6, 3.3), "figure.facecolor": "none", "figure.constrained_layout.use": True,
    "axes.facecolor": "none", "axes.titlesize": 10.5, "axes.linewidth": 0.6, "axes.axisbelow": True, "axes.grid": True,
    "axes.spines.top": False, "axes.spines.right": False, "grid.color": INK, "grid.alpha": 0.12, "grid.linewidth": 0.6,
    "font.size": 10, "svg.fonttype": "none", "svg.hashsalt": "report",
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}  # fmt: skip


Mark = tuple[Row, float | None, float, float, float]  # row, parameters, average, the ends of its interval


def styles_of(tables: Sequence[Table]) -> dict[Row, tuple[str, str]]:
    """Colour and marker of each row: a colour is a method, a marker tells its ranks apart."""
    rows = list({(row.label, row.rank): row for table in tables for row in table.rows}.values())
    names = list(dict.fromkeys(row.label for row in rows))
    colours = {label: PALETTE[i % len(PALETTE)] for i, label in enumerate(names)}
    seen: dict[str, int] = {}
    styles = {}
    for row in rows:
        nth = seen[row.label] = seen.get(row.label, -1) + 1
        styles[row.label, row.rank] = colours[row.label], list(MARKERS)[nth % len(MARKERS)]
    return {row: styles[row.label, row.rank] for table in tables for row in table.rows}


def scatter(title: str, points: Sequence[Mark], styles: dict[Row, tuple[str, str]]) -> Markup:
    """Average score against trainable parameters; a vanilla row, which trains nothing, is a dashed line."""
    figure, axes = _axes(title, "trainable parameters", "average score, percent")
    for row, params, value, low, high in points:
        colour, marker = styles[row]
        if params is not None:
            axes.vlines(params, low, high, color=colour, alpha=0.5)
            axes.plot(params, value, marker, color=colour, markersize=7)
    scale_parameters(axes, [params for _, params, *_ in points if params is not None])
    bottom, top = axes.get_ylim()  # of the trained rows: a vanilla row far below would flatten their differences
    for row, params, value, *_ in points:
        if params is None and bottom < value < top:
            axes.axhline(value, color=styles[row][0], linestyle="--", linewidth=1.2)
    outside = [f"{row.label} {value:.2f}" for row, p, value, *_ in points if p is None and not bottom < value < top]
    if outside:
        axes.set_xlabel(f"trainable parameters\noutside the frame:\n{', '.join(outside)}")
    return _svg(figure, f"average score against trainable parameters, {title}")


def scale_parameters(axes: Axes, sizes: Sequence[float]) -> None:
    """A logarithmic axis of trainable parameters, with few labels, so that they do not overlap."""
    axes.set_xscale("log")
    narrow = bool(sizes) and max(sizes) < 30 * min(sizes)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter("")
    if sizes:
        axes.set_xlim(min(sizes) / 2, max(sizes) * 2)


def bars(title: str, points: Sequence[Mark], styles: dict[Row, tuple[str, str]]) -> Markup:
    """Average score of a whole method, which comes first, and of its variants with their difference to it."""
    figure, axes = _axes(title, "average score, percent", "")
    figure.set_figheight(2.4)
    axes.grid(axis="y", visible=False)
    whole, _, reference, *_ = points[0]
    for row, _, value, low, high in points:
        name = row.name
        axes.barh(name, value, color=styles[row][0], height=0.62)
        axes.hlines(name, low, high, color=INK, linewidth=1)
        difference = "" if row is whole else f" ({value - reference:+.2f})"
        axes.annotate(f"{value:.2f}{difference}", (high, name), (5, 0), textcoords="offset points", va="center")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.5 * max(high for *_, high in points) or 1)
    return _svg(figure, f"average score of {whole.label} and its variants, {title}")


def loss_curve(data: str, cells: Sequence[Trained], styles: dict[Row, tuple[str, str]]) -> Markup:
    figure, axes = _axes(data, "step", "loss")
    for cell in cells:
        assert cell.metrics is not None
        colour, marker = styles[cell.row]
        training, validation = (cell.metrics.dropna(subset=name) for name in ("loss", "eval_loss"))
        axes.plot(training.step, training.loss, color=colour, linestyle=DASHES[marker], linewidth=1.2)
        axes.plot(validation.step, validation.eval_loss, marker, color=colour, markersize=6)
    return _svg(figure, f"training and validation loss on {data}")


def _axes(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure()  # not pyplot's, which would choose a backend for the whole process
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    return figure, axes


def _svg(figure: Figure, description: str) -> Markup:
    """The figure as an inline SVG whose text and lines follow the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    drawing = buffer.getvalue().partition("<svg")[2].replace(INK, "currentColor")
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    return Markup(f'<svg role="img" aria-label="{description}"{drawing}')


def legend(rows: Sequence[Row], styles: dict[Row, tuple[str, str]]) -> list[tuple[str, str, str]]:
    """Colour, sign and text per row."""
    named = {row.name: row for row in rows}
    styled = [(name, row, *styles[row]) for name, row in named.items()]
    return [(colour, "╌" if row.rank is None else MARKERS[marker], name) for name, row, colour, marker in styled]

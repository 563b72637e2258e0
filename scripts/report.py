"""One self-contained HTML page of a profile's results: tables, score against parameters, ablation, loss curves.

    python -m scripts.report profile=smol      (or `make report PROFILE=smol`)

It reads results/<profile>/ and, for the loss curves, the runs that are on this machine. What it writes,
report/<profile>.html, needs no network, no scripts and no other file.
"""

import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import pandas as pd
from markupsafe import Markup, escape
from omegaconf import DictConfig

from data_prep import storage
from scripts import grid, render
from scripts.errors import entry_point
from scripts.grid import Row

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator

TABLES = ("table1", "table2", "table3")
# Of a middle lightness, so that they can be told from a white and from a dark page; vanilla rows come first.
PALETTE = (
    "#8b8f98", "#b29a76", "#3f86d8", "#2a9d8f", "#9268d4", "#cf8a1c",
    "#e0523c", "#d97fb0", "#7d9b2f", "#4fb3d9", "#a5674a", "#6b7fa8",
)  # fmt: skip
MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆"}  # as drawn, and as text
DASHES = dict(zip(MARKERS, ("-", "--", ":", "-."), strict=True))
INK = "#0a0b0c"  # what matplotlib draws in it takes the colour of the page's text
FIGURES: dict[Any, Any] = {
    "figure.figsize": (4.6, 3.3), "figure.facecolor": "none", "figure.constrained_layout.use": True,
    "axes.facecolor": "none", "axes.titlesize": 10.5, "axes.linewidth": 0.6, "axes.axisbelow": True, "axes.grid": True,
    "axes.spines.top": False, "axes.spines.right": False, "grid.color": INK, "grid.alpha": 0.12, "grid.linewidth": 0.6,
    "font.size": 10, "svg.fonttype": "none", "svg.hashsalt": "report",
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A table of the results folder, as `scripts.tables` wrote it."""

    name: str
    title: str
    rows: list[Row]
    columns: list[str]  # table columns and the average
    summary: pd.DataFrame  # measured, means over seeds: what `render.summarise` gives
    paper: pd.DataFrame
    notes: list[str]


@dataclass(frozen=True)
class Trained:
    """A trained cell of the results, and its loss curve if its run is on this machine."""

    name: str  # <model>/<run>
    row: Row
    data: str  # training set and model: curves of different ones are in different figures
    info: dict[str, Any]  # of its run.json
    metrics: pd.DataFrame | None


Point = tuple[Row, float | None, float, float, float]  # row, parameters, average, the ends of its interval


def page(profile: str, results: Path, own_runs: Path) -> str:
    """The HTML page. results: results/<profile>; own_runs: runs/<profile>, which need not exist.

    Raises FileNotFoundError if there is no table.
    """
    tables = load_tables(profile, results)
    labels = _labels(results)
    trained = list(load_trained(results, own_runs, [row for table in tables for row in table.rows]))
    styles = _styles(tables)
    with plt.rc_context(FIGURES):
        sections = [_section(table, render.titles(table.columns[:-1], labels), styles) for table in tables]
        losses = {name: _loss_curve(name, own, styles) for name, own in _by_data(trained).items()}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("report.html.j2").render(
        profile=profile,
        sections=sections,
        losses=losses,
        loss_legend=_legend([cell.row for cell in trained if cell.metrics is not None], styles),
        trained=trained,
        missing=[cell.name for cell in trained if cell.metrics is None],
        own_runs=own_runs,
    )


def load_tables(profile: str, results: Path) -> list[Table]:
    """The tables in a results folder. Raises FileNotFoundError if there is none."""
    found = [_load_table(profile, results, name) for name in TABLES if (results / f"{name}.csv").is_file()]
    if not found:
        raise FileNotFoundError(f"{results} holds no table; make one first, e.g. `make table2 PROFILE={profile}`.")
    return found


def load_trained(results: Path, own_runs: Path, rows: Sequence[Row]) -> Iterator[Trained]:
    """The trained cells behind the tables, in the order of the rows, from what the results say of each."""
    cells = [(path.parent.name, json.loads(path.read_text())) for path in sorted(results.glob("cells/*/*.json"))]
    for row in dict.fromkeys(rows):
        for model, cell in cells:
            if cell["method"] in row.methods and cell["dataset"] is not None:
                path = own_runs / model / cell["run"] / "metrics.jsonl"
                metrics = pd.read_json(path, lines=True) if path.is_file() else None
                yield Trained(f"{model}/{cell['run']}", row, f"{cell['dataset']}, {model}", cell["training"], metrics)


def _load_table(profile: str, results: Path, name: str) -> Table:
    cfg = grid.compose([f"profile={profile}", f"table={name}"])
    frame = pd.read_csv(results / f"{name}.csv", dtype={"label": str, "rank": str, "seed": str})
    measured = frame[(frame.source == "measured") & (frame.seed == "mean")]
    summary = measured.assign(rank=measured["rank"].fillna(""), won=measured.won.astype(bool))
    text = (results / f"{name}.md").read_text()
    notes = re.findall(r"^- (.*)$", text.partition("## Notes")[2], flags=re.MULTILINE)
    paper = render.load_paper(render.PRINTED / f"{name}.csv")
    return Table(name, cfg.table.title, grid.rows(cfg), [*cfg.table.columns, render.AVERAGE], summary, paper, notes)


def _labels(results: Path) -> dict[str, str]:
    """The name that each benchmark's data gives itself."""
    cells = [json.loads(path.read_text()) for path in sorted(results.glob("cells/*/*.json"))]
    return {name: found["label"] for cell in cells for name, found in cell["evaluation"].items()}


def _styles(tables: Sequence[Table]) -> dict[Row, tuple[str, str]]:
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


def _section(table: Table, head: dict[str, str], styles: dict[Row, tuple[str, str]]) -> dict[str, Any]:
    return {
        "name": table.name,
        "title": table.title,
        "head": [head[column] for column in table.columns],
        "lines": render.grid_lines(table.rows, table.columns, table.summary, table.paper),
        "intervals": render.interval_lines(table.rows, table.columns, table.summary),
        "notes": [_html(note) for note in table.notes],
        "legend": _legend(table.rows, styles),
        "scatter": [_scatter(*drawn, styles) for drawn in _sources(table, table.rows)],
        "ablation": [_bars(*drawn, styles) for drawn in _sources(table, grid.ablation(table.rows))],
    }


def _sources(table: Table, rows: Sequence[Row]) -> list[tuple[str, list[Point]]]:
    """What there is to draw of some rows: measured, where any of them ran, and the paper's."""
    both = [("measured, with 95% intervals", _measured(table, rows)), ("printed in the paper", _printed(table, rows))]
    return [(title, points) for title, points in both if points]


def _measured(table: Table, rows: Sequence[Row]) -> list[Point]:
    points = []
    for row in rows:
        best = render.reported(table.summary, row)
        if not best.empty:
            line = best.loc[render.AVERAGE]
            params = None if pd.isna(line.params) else float(line.params)
            points.append((row, params, float(line.value), float(line.ci_low), float(line.ci_high)))
    return points


def _printed(table: Table, rows: Sequence[Row]) -> list[Point]:
    points = []
    for row in rows:
        line = table.paper.loc[(row.label, row.rank or "")]
        value = float(line[render.AVERAGE])
        points.append((row, render.parameter_count(line.params), value, value, value))
    return points


def _scatter(title: str, points: Sequence[Point], styles: dict[Row, tuple[str, str]]) -> Markup:
    """Average score against trainable parameters; a vanilla row, which trains nothing, is a dashed line."""
    figure, axes = _axes(title, "trainable parameters", "average score, percent")
    for row, params, value, low, high in points:
        colour, marker = styles[row]
        if params is not None:
            axes.vlines(params, low, high, color=colour, alpha=0.5)
            axes.plot(params, value, marker, color=colour, markersize=7)
    _scale_parameters(axes, [params for _, params, *_ in points if params is not None])
    bottom, top = axes.get_ylim()  # of the trained rows: a vanilla row far below would flatten their differences
    for row, params, value, *_ in points:
        if params is None and bottom < value < top:
            axes.axhline(value, color=styles[row][0], linestyle="--", linewidth=1.2)
    outside = [f"{row.label} {value:.2f}" for row, p, value, *_ in points if p is None and not bottom < value < top]
    if outside:
        axes.set_xlabel(f"trainable parameters\noutside the frame:\n{', '.join(outside)}")
    return _svg(figure, f"average score against trainable parameters, {title}")


def _scale_parameters(axes: Axes, sizes: Sequence[float]) -> None:
    axes.set_xscale("log")
    narrow = bool(sizes) and max(sizes) < 30 * min(sizes)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter("")
    if sizes:
        axes.set_xlim(min(sizes) / 2, max(sizes) * 2)


def _bars(title: str, points: Sequence[Point], styles: dict[Row, tuple[str, str]]) -> Markup:
    """Average score of MoS and of its variants, with the difference to MoS."""
    figure, axes = _axes(title, "average score, percent", "")
    figure.set_figheight(2.4)
    axes.grid(axis="y", visible=False)
    whole = next((value for row, _, value, *_ in points if row.label == "MoS"), None)
    for row, _, value, low, high in points:
        name = f"{row.label} {row.rank}"
        axes.barh(name, value, color=styles[row][0], height=0.62)
        axes.hlines(name, low, high, color=INK, linewidth=1)
        difference = "" if whole is None or row.label == "MoS" else f" ({value - whole:+.2f})"
        axes.annotate(f"{value:.2f}{difference}", (high, name), (5, 0), textcoords="offset points", va="center")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.5 * max(high for *_, high in points) or 1)
    return _svg(figure, f"average score of MoS and its variants, {title}")


def _loss_curve(data: str, cells: Sequence[Trained], styles: dict[Row, tuple[str, str]]) -> Markup:
    figure, axes = _axes(data, "step", "loss")
    for cell in cells:
        assert cell.metrics is not None
        colour, marker = styles[cell.row]
        training, validation = (cell.metrics.dropna(subset=name) for name in ("loss", "eval_loss"))
        axes.plot(training.step, training.loss, color=colour, linestyle=DASHES[marker], linewidth=1.2)
        axes.plot(validation.step, validation.eval_loss, marker, color=colour, markersize=6)
    return _svg(figure, f"training and validation loss on {data}")


def _by_data(trained: Sequence[Trained]) -> dict[str, list[Trained]]:
    names = dict.fromkeys(cell.data for cell in trained if cell.metrics is not None)
    return {name: [c for c in trained if c.data == name and c.metrics is not None] for name in names}


def _axes(title: str, x: str, y: str) -> tuple[Any, Axes]:
    figure, axes = plt.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    return figure, axes


def _svg(figure: Any, description: str) -> Markup:
    """The figure as an inline SVG whose text and lines follow the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    drawing = buffer.getvalue().partition("<svg")[2].replace(INK, "currentColor")
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    return Markup(f'<svg role="img" aria-label="{description}"{drawing}')


def _legend(rows: Sequence[Row], styles: dict[Row, tuple[str, str]]) -> list[tuple[str, str, str]]:
    """Colour, sign and text per row."""
    named = {f"{row.label} {row.rank or ''}".strip(): styles[row] for row in rows}
    return [
        (colour, "╌" if name.startswith("Vanilla") else MARKERS[marker], name)
        for name, (colour, marker) in named.items()
    ]


def _html(note: str) -> Markup:
    """A note of the Markdown table: code and emphasis are the only marks in it."""
    emphasised = re.sub(r"\*(\w+)\*", r"<em>\1</em>", str(escape(note)))
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", emphasised))


@entry_point
def main(cfg: DictConfig) -> None:
    text = page(cfg.profile, Path(cfg.results_dir) / cfg.profile, Path(cfg.runs_dir) / cfg.profile)
    path = Path("report") / f"{cfg.profile}.html"
    path.parent.mkdir(exist_ok=True)
    storage.write_text(path, text)
    print(path)


if __name__ == "__main__":
    main()

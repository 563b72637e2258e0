"""One self-contained HTML page of a profile's results: tables, score against parameters, ablation, loss curves."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import pandas as pd
from markupsafe import Markup, escape

from scripts.table import render
from scripts.table.figures import FIGURES, Mark, bars, legend, loss_curve, scatter, styles_of
from scripts.table.grid import Row
from scripts.table.paper import printed_point
from scripts.table.summary import AVERAGE, drawn, reported
from scripts.table.written import Table, Trained, labels, load_tables, load_trained


def page(profile: str, results: Path, own_runs: Path) -> str:
    """The HTML page. results: results/<profile>; own_runs: runs/<profile>, which need not exist.

    Raises FileNotFoundError if there is no table.
    """
    tables = load_tables(profile, results)
    names = labels(results)
    trained = list(load_trained(results, own_runs, [row for table in tables for row in table.rows]))
    styles = styles_of(tables)
    with matplotlib.rc_context(FIGURES):
        sections = [_section(table, render.titles(table.cfg, names), styles) for table in tables]
        losses = {name: loss_curve(name, own, styles) for name, own in _by_data(trained).items()}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("page.html.j2").render(
        profile=profile,
        sections=sections,
        losses=losses,
        loss_legend=legend([cell.row for cell in trained if cell.metrics is not None], styles),
        trained=trained,
        missing=[cell.name for cell in trained if cell.metrics is None],
        own_runs=own_runs,
    )


def _section(table: Table, head: dict[str, str], styles: dict[Row, tuple[str, str]]) -> dict[str, Any]:
    ablation = [row for row in table.rows if row.ablation]
    return {
        "name": table.name,
        "title": table.title,
        "head": [head[column] for column in table.columns],
        "lines": render.grid_lines(table.rows, table.columns, table.summary, table.paper),
        "intervals": render.interval_lines(table.rows, table.columns, table.summary),
        "notes": [_html(note) for note in table.notes],
        "legend": legend(table.rows, styles),
        "scatter": [scatter(*drawn, styles) for drawn in _sources(table, table.rows)],
        "ablation": [
            bars(title, points, styles) for title, points in _sources(table, ablation) if points[0][0] is ablation[0]
        ],
    }


def _sources(table: Table, rows: Sequence[Row]) -> list[tuple[str, list[Mark]]]:
    """What there is to draw of some rows: measured, where any of them ran, and the paper's."""
    both = [("measured, with 95% intervals", _measured(table, rows)), ("printed in the paper", _printed(table, rows))]
    return [(title, points) for title, points in both if points]


def _measured(table: Table, rows: Sequence[Row]) -> list[Mark]:
    points = []
    for row in rows:
        best = reported(table.summary, row)
        if not best.empty and not pd.isna(best.loc[AVERAGE, "value"]):
            points.append((row, *drawn(best.loc[AVERAGE])))
    return points


def _printed(table: Table, rows: Sequence[Row]) -> list[Mark]:
    points = []
    for row in rows:
        point = printed_point(table.paper, row)
        if point is not None:
            params, value = point
            points.append((row, params, value, value, value))
    return points


def _by_data(trained: Sequence[Trained]) -> dict[str, list[Trained]]:
    names = dict.fromkeys(cell.data for cell in trained if cell.metrics is not None)
    return {name: [c for c in trained if c.data == name and c.metrics is not None] for name in names}


def _html(note: str) -> Markup:
    """A note of the Markdown table: code and emphasis are the only marks in it."""
    emphasised = re.sub(r"\*(\w+)\*", r"<em>\1</em>", str(escape(note)))
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", emphasised))

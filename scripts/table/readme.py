"""The tables in README.md and docs/evidence.md, made from the committed results.

`<!-- table: micro/table2 -->` to `<!-- end -->` is a table of results/published; docs/tables.md explains its marks.
`<!-- page: FILE, HEADING -->` to `<!-- end -->` is the first table below a heading of a rendered page in results/.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from scripts.config import ROOT
from scripts.markdown import pipe_table
from scripts.table.render import DIGITS, NAMES
from scripts.table.statistics import LEVEL
from scripts.table.summary import AVERAGE, LOSS, is_better

README, RESULTS = ROOT / "README.md", ROOT / "results"
PAGES = (README, ROOT / "docs" / "evidence.md")
MARKED = re.compile(r"(<!-- table: (?P<folder>[\w./=+-]+)/(?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
COPIED = re.compile(r"(<!-- page: (?P<file>[^,\n]+), (?P<heading>[^\n]+) -->\n).*?(<!-- end -->)", re.DOTALL)
HEAD = ("Method", "Rank", "# Param., measured", "Avg., measured", "# Param., paper", "Avg., paper")


def filled(text: str, results: Path) -> str:
    """`text` with each marked table as the committed results give it.

    results: the folder that holds `published/<folder>/<table>.csv` and the pages. Raises FileNotFoundError for a file
    that is not there, ValueError for a page without the heading, or without a table below it.
    """
    text = MARKED.sub(
        lambda found: f"{found[1]}{_table(results / 'published' / found['folder'] / found['name'])}{found[4]}", text
    )
    return COPIED.sub(lambda found: f"{found[1]}{_copied(results / found['file'], found['heading'])}{found[4]}", text)


def _copied(page: Path, heading: str) -> str:
    """The first table below the heading."""
    if not page.is_file():
        raise FileNotFoundError(f"A page shows a table of {page}, which is not there.")
    found = re.search(rf"^#+ {re.escape(heading)}\n[^#|]*((?:\|.*\n)+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise ValueError(f"A page shows the table below '{heading}' in {page}, which has none.")
    return found[1]


def _table(stem: Path) -> str:
    """The averages of a table's rows, measured beside the paper's; in front their validation losses, if it has any."""
    path = stem.with_suffix(".csv")
    if not path.is_file():
        raise FileNotFoundError(f"A page shows {path}, which is not there; publish it, or take its marks out.")
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    measured = frame[(frame.source == "measured") & (frame.seed == "mean") & (frame.won == "True")]
    losses = {_key(line): line for line in _lines(measured, LOSS) if line["value"]}
    printed = {_key(line): line for line in _lines(frame[frame.source == "paper"], AVERAGE)}
    rows = [_row(line, losses, printed.get(_key(line), NOT_PRINTED)) for line in _lines(measured, AVERAGE)]
    head = [*HEAD[:3], *([f"{NAMES[LOSS]}, measured"] if losses else []), *HEAD[3:]]
    return pipe_table(head, rows) + "\n"


NOT_PRINTED = {"params": "", "value": ""}
Line = dict[Any, str]  # of a table's CSV


def _lines(frame: pd.DataFrame, column: str) -> list[Line]:
    return frame[frame.column == column].to_dict("records")


def _key(line: Line) -> tuple[str, str]:
    return line["label"], line["rank"]


def _row(line: Line, losses: Mapping[tuple[str, str], Line], printed: Line) -> list[str]:
    own = f"{int(line['params']):,}" if line["params"] else "-"
    loss = [_loss(losses.get(_key(line)))] if losses else []
    theirs = f"{float(printed['value']):.1f}" if printed["value"] else "-"
    return [line["label"], line["rank"] or "-", own, *loss, _mean(line, 1), printed["params"] or "-", theirs]


def _mean(line: Line, digits: int) -> str:
    """A mean and its standard deviation over seeds."""
    if not line["value"]:
        return "-"
    return f"{float(line['value']):.{digits}f}" + (f" ± {float(line['std']):.{digits}f}" if line["std"] else "")


def _loss(line: Line | None) -> str:
    """A loss with the mark of a significant difference."""
    if line is None:
        return "-"
    mark = "▲" if is_better(float(line["difference"] or 0), LOSS) else "▼"
    return f"{_mean(line, DIGITS)} {mark if float(line['p_holm'] or 1) < LEVEL else ''}".rstrip()

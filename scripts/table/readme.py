"""The tables in README.md, made from the committed results.

`<!-- table: micro/table2 -->` to `<!-- end -->` is a table of results/published. `<!-- page: FILE, HEADING -->` to
`<!-- end -->` is the first table below a heading of a rendered page in results/.
"""

import re
from pathlib import Path

import pandas as pd

from scripts.config import ROOT
from scripts.markdown import pipe_table

README, RESULTS = ROOT / "README.md", ROOT / "results"
MARKED = re.compile(r"(<!-- table: (?P<profile>\w+)/(?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
COPIED = re.compile(r"(<!-- page: (?P<file>[^,\n]+), (?P<heading>[^\n]+) -->\n).*?(<!-- end -->)", re.DOTALL)
HEAD = ("Method", "Rank", "# Param., measured", "Avg., measured", "# Param., paper", "Avg., paper")


def filled(text: str, results: Path) -> str:
    """`text` with each marked table as the committed results give it.

    results: the folder that holds `published/<profile>/<table>.csv` and the pages. Raises FileNotFoundError for a file
    that is not there, ValueError for a page without the heading, or without a table below it.
    """
    text = MARKED.sub(
        lambda found: f"{found[1]}{_table(results / 'published' / found['profile'] / found['name'])}{found[4]}", text
    )
    return COPIED.sub(lambda found: f"{found[1]}{_copied(results / found['file'], found['heading'])}{found[4]}", text)


def _copied(page: Path, heading: str) -> str:
    """The first table below the heading."""
    if not page.is_file():
        raise FileNotFoundError(f"README.md shows a table of {page}, which is not there.")
    found = re.search(rf"^#+ {re.escape(heading)}\n[^#|]*((?:\|.*\n)+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise ValueError(f"README.md shows the table below '{heading}' in {page}, which has none.")
    return found[1]


def _table(stem: Path) -> str:
    """The averages of a table's rows, measured beside the paper's."""
    path = stem.with_suffix(".csv")
    if not path.is_file():
        raise FileNotFoundError(f"README.md shows {path}, which is not there; publish it, or take its marks out.")
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    frame = frame[frame.column == "avg"]
    measured = frame[(frame.source == "measured") & (frame.seed == "mean") & (frame.won == "True")]
    printed = frame[frame.source == "paper"].set_index(["label", "rank"])
    rows = [_row(line, printed) for line in measured.itertuples()]
    return pipe_table(HEAD, rows) + "\n"


def _row(line: object, printed: pd.DataFrame) -> list[str]:
    values = line._asdict()  # type: ignore[attr-defined]
    key = (values["label"], values["rank"])
    params, average = printed.loc[key, ["params", "value"]] if key in printed.index else ("", "")
    own = f"{int(values['params']):,}" if values["params"] else "-"
    deviation = f" ± {float(values['std']):.1f}" if values["std"] else ""
    theirs = f"{float(average):.1f}" if average else "-"
    return [
        values["label"],
        values["rank"] or "-",
        own,
        f"{float(values['value']):.1f}{deviation}",
        params or "-",
        theirs,
    ]

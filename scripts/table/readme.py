"""The tables in README.md, made from the published results: `<!-- table: micro/table2 -->` to `<!-- end -->`."""

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from scripts.config import ROOT

README = ROOT / "README.md"
MARKED = re.compile(r"(<!-- table: (?P<profile>\w+)/(?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
HEAD = ("Method", "Rank", "# Param., measured", "Avg., measured", "# Param., paper", "Avg., paper")


def filled(text: str, published: Path) -> str:
    """`text` with each marked table as the published results give it.

    published: the folder that holds `<profile>/<table>.csv`. Raises FileNotFoundError for a table that is not there.
    """
    return MARKED.sub(lambda found: f"{found[1]}{_table(published / found['profile'] / found['name'])}{found[4]}", text)


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
    return "\n".join(map(_pipe, [HEAD, ["---"] * len(HEAD), *rows])) + "\n"


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


def _pipe(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"

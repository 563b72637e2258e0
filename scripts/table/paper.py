"""The numbers that the paper prints; a row or column that it lacks is shown as `-`."""

from collections.abc import Sequence

import pandas as pd

from scripts.config import ROOT
from scripts.table.grid import Row
from scripts.table.summary import AVERAGE

PRINTED = ROOT / "results" / "printed"
NO_SCORE = ("source", "params", "copied_from_prolora")
NOTHING = "-"


def load_paper(table: str) -> pd.DataFrame:
    """The paper's printed numbers of a table, as text, indexed by row label and rank ('' where there is none).

    A table that the paper does not have gives a frame without rows.
    """
    path = PRINTED / f"{table}.csv"
    if not path.is_file():
        return pd.DataFrame(columns=["label", "rank", *NO_SCORE], dtype=str).set_index(["label", "rank"])
    return pd.read_csv(path, dtype=str, keep_default_na=False).set_index(["label", "rank"])


def score_columns(paper: pd.DataFrame) -> list[str]:
    """The columns of scores, the average included."""
    return [column for column in paper.columns if column not in NO_SCORE]


def beside(paper: pd.DataFrame, averaged: Sequence[str]) -> pd.DataFrame:
    """The paper's numbers beside a table whose average is over `averaged`.

    The paper's average is over its own columns. It counts only beside an average over the same.
    """
    return paper if {*averaged, AVERAGE} == set(score_columns(paper)) else paper.assign(**{AVERAGE: NOTHING})


def printed(paper: pd.DataFrame, row: Row, column: str) -> str:
    """What the paper prints for a row in a score column or in `params`; '-' where it prints nothing."""
    key = (row.label, row.rank or "")
    if key not in paper.index or column not in paper.columns:
        return NOTHING
    return str(paper.loc[key, column]) or NOTHING


def printed_point(paper: pd.DataFrame, row: Row) -> tuple[float | None, float] | None:
    """Parameters (None: the paper prints none) and average of a row, to be drawn; None where there is no average."""
    params, average = (printed(paper, row, column) for column in ("params", AVERAGE))
    return None if average == NOTHING else (parameter_count(params), float(average))


def is_copied(paper: pd.DataFrame, row: Row) -> bool:
    """Whether the paper copied the row from PRoLoRA (Wang et al., 2024b)."""
    return printed(paper, row, "copied_from_prolora") == "true"


def parameter_count(text: str) -> float | None:
    """Parameters as the paper prints them ("5.00M"); None where it prints none."""
    return None if text in ("", NOTHING) else float(text.removesuffix("M")) * 1e6


def long_form(paper: pd.DataFrame) -> pd.DataFrame:
    """A line per row and score column, with `value` as a number; nan where there is none."""
    long = paper.reset_index().melt(
        ["label", "rank", "params"], score_columns(paper), var_name="column", value_name="value"
    )
    return long.assign(source="paper", value=pd.to_numeric(long.value, errors="coerce"))

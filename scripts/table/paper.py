"""The numbers that the paper prints."""

from pathlib import Path

import pandas as pd

from scripts.config import ROOT

PRINTED = ROOT / "results" / "paper" / "printed"  # results/paper itself is for the tables of that profile


def load_paper(path: Path) -> pd.DataFrame:
    """The paper's printed numbers, as text, indexed by row label and rank ('' where there is none)."""
    return pd.read_csv(path, dtype=str, keep_default_na=False).set_index(["label", "rank"])


def parameter_count(printed: str) -> float | None:
    """Parameters as the paper prints them ("5.00M"); None where it prints none."""
    return float(printed.removesuffix("M")) * 1e6 if printed else None


def long_form(paper: pd.DataFrame) -> pd.DataFrame:
    scores = [column for column in paper.columns if column not in ("source", "params", "copied_from_prolora")]
    long = paper.reset_index().melt(["label", "rank", "params"], scores, var_name="column", value_name="value")
    return long.assign(source="paper", value=long.value.astype(float))

"""A table as Markdown and CSV: measured beside the paper's numbers.

The output depends on the scores alone: no times, dates or paths, so the same runs give the same bytes.
"""

from collections.abc import Mapping, Sequence

import pandas as pd
from omegaconf import DictConfig

from eval import benchmarks
from scripts.markdown import pipe_table
from scripts.table import statistics
from scripts.table.grid import Row
from scripts.table.paper import is_copied, long_form, printed
from scripts.table.summary import AVERAGE, LOSS, Entry, is_better, reported

DIGITS = 4  # of a loss
NAMES = {AVERAGE: "Avg.", LOSS: "Val. loss ↓"}


def titles(cfg: DictConfig, labels: Mapping[str, str]) -> dict[str, str]:
    """Headings of the table's columns, from the yaml of their benchmarks.

    labels: benchmark -> the name that its data gives itself, where it is another than the benchmark's
    """
    owner = benchmarks.columns(cfg.benchmark.values())
    found = {}
    for column in cfg.table.columns:
        config = cfg.benchmark[owner[column]]
        found[column] = f"{labels.get(config.name, config.title)} {config.columns[column]}".strip()
    return found | NAMES


def markdown(
    title: str,
    rows: Sequence[Row],
    columns: Sequence[str],
    summary: pd.DataFrame,
    paper: pd.DataFrame,
    head: Mapping[str, str],
    notes: Sequence[str],
) -> str:
    """The table as Markdown: two lines per row, the measured and the paper's, then intervals, comparisons and notes.

    head: headings of the columns, as `titles` gives them.
    """
    shown = [*columns, AVERAGE, LOSS]
    lines = grid_lines(rows, shown, summary, paper)
    table = pipe_table(["Method", "Rank", "Source", "# Param.", *(head[c] for c in shown)], lines)
    intervals = pipe_table(["Method", "Rank", *(head[c] for c in shown)], interval_lines(rows, shown, summary))
    copied = "paper†: copied by the paper from PRoLoRA (Wang et al., 2024b)."
    notes = [*notes, copied] if any(is_copied(paper, row) for row in rows) else notes
    notes = [*notes, *interval_notes(summary), *_comparison_notes(summary), *_uncompared_notes(rows, summary)]
    parts = [f"# {title}", table, "## Notes", "\n".join(f"- {note}" for note in notes)]
    if not summary.empty:
        parts += ["## 95% confidence intervals (measured)", intervals]
    return "\n\n".join(parts) + "\n"


def grid_lines(
    rows: Sequence[Row], shown: Sequence[str], summary: pd.DataFrame, paper: pd.DataFrame
) -> list[list[str]]:
    """The cells of the table, two lines per row: label, rank, source, parameters and the `shown` columns as text."""
    lines = []
    for row in rows:
        source = f"paper{'†' if is_copied(paper, row) else ''}"
        theirs = [printed(paper, row, column) for column in ("params", *shown)]
        best = reported(summary, row)
        if best.empty:
            measured = [row.rank or "-", "measured", "-", *(["not run"] + [""] * (len(shown) - 1))]
        else:
            measured = [_rank(row, best), "measured", _params(best), *(_cell(best, c) for c in shown)]
        lines.append([row.label, *measured])
        lines.append([row.label, row.rank or "-", source, *theirs])
    return lines


def interval_lines(rows: Sequence[Row], shown: Sequence[str], summary: pd.DataFrame) -> list[list[str]]:
    """Label, rank and the 95% interval of each `shown` column, of the rows that ran."""
    lines = []
    for row in rows:
        best = reported(summary, row)
        if not best.empty:
            lines.append([row.label, _rank(row, best), *(_interval(best, c) for c in shown)])
    return lines


def _rank(row: Row, best: pd.DataFrame) -> str:
    rank = best["r"].iloc[0]
    if pd.isna(rank):
        return "-"
    return str(int(rank)) if row.rank == str(int(rank)) else f"{int(rank)} (of {row.rank})"


def _params(best: pd.DataFrame) -> str:
    params = best["params"].iloc[0]
    return "-" if pd.isna(params) else f"{int(params):,}"


def _interval(best: pd.DataFrame, column: str) -> str:
    if column not in best.index or pd.isna(best.loc[column, "ci_low"]):
        return "-"
    digits = DIGITS if column == LOSS else 1
    low, high = best.loc[column, ["ci_low", "ci_high"]]
    return f"{low:.{digits}f} to {high:.{digits}f}"


def _cell(best: pd.DataFrame, column: str) -> str:
    if column not in best.index or pd.isna(best.loc[column, "value"]):  # a table of before the column was there
        return "-"
    line = best.loc[column]
    text = number(line["value"], column) + ("" if pd.isna(line["std"]) else f" ± {number(line['std'], column)}")
    return f"{text} {_mark(line, column)}".rstrip()


def _mark(line: pd.Series, column: str) -> str:
    if pd.isna(line["p_holm"]) or line["p_holm"] >= statistics.LEVEL:
        return ""
    return "▲" if is_better(line["difference"], column) else "▼"


def interval_notes(summary: pd.DataFrame) -> list[str]:
    """What the intervals and the tests of this table include."""
    ran = summary[summary.won.astype(bool) & summary.value.notna()]
    if ran.empty:
        return []
    equal = " No interval where all items have the same score: nothing shows how they vary." if _no_spread(ran) else ""
    if ran.seeds.max() == 1:
        return [
            "One seed: the intervals and tests are over the items alone. They know nothing of how seeds vary, and "
            f"another seed may order the rows differently.{equal}"
        ]
    alone = " Rows without ± have one seed: their intervals are over the items alone." if ran.seeds.min() == 1 else ""
    return [f"Intervals and tests are over seeds and items together.{alone}{equal}"]


def _no_spread(ran: pd.DataFrame) -> bool:
    return bool((ran.ci_low.isna() & (ran.n_items > 1)).any())


def _comparison_notes(summary: pd.DataFrame) -> list[str]:
    tested = summary[summary.p_holm.notna()]
    if tested.empty:
        return ["No paired test: no row was run on the same items and seeds as the LoRA of its budget."]
    marked = tested[tested.p_holm < statistics.LEVEL]
    notes = [
        f"▲ better, ▼ worse than LoRA at the same budget: t-test of the differences, paired by seed and item, "
        f"Holm-adjusted over the {len(tested)} comparisons of this table, 5% level. {len(marked)} of {len(tested)} are "
        "significant; an unmarked number in a tested row is *not* significantly different. Intervals of differences "
        "are not adjusted."
    ]
    whole = tested[tested.column.isin(NAMES)]  # a row of which a cell failed has none
    return notes + [_comparison(names, lines) for names, lines in whole.groupby(["label", "rank"], sort=False)]


def _comparison(names: tuple[str, str], lines: pd.DataFrame) -> str:
    parts = [
        f"{NAMES[line.column].rstrip(' ↓')} {number(line.difference, line.column, '+')} "
        f"({ends(line.difference_low, line.difference_high, line.column)}), "
        f"adjusted p {'= ' if line.p_holm >= 0.001 else '< '}{max(line.p_holm, 0.001):.3f}"
        for line in lines.itertuples()
    ]
    return f"{' '.join(names).strip()} against `{lines.against.iloc[0]}`: {'; '.join(parts)}."


def _uncompared_notes(rows: Sequence[Row], summary: pd.DataFrame) -> list[str]:
    """Which averages and losses have no test though both rows have them: a cell of one of the two is missing."""
    values = summary[summary.value.notna()].groupby("column").method.agg(set)
    notes = []
    for row in rows:
        best = reported(summary, row)
        for column in [c for c in NAMES if c in best.index and best.method.iloc[0] != row.against]:
            if pd.isna(best.against[column]) and {best.method[column], row.against} <= values.get(column, set()):
                name = NAMES[column].rstrip(" ↓")
                notes.append(f"{name} of {row.name} is not compared with `{row.against}`: other seeds or items.")
    return notes


def candidate_notes(rows: Sequence[Row], summary: pd.DataFrame) -> list[str]:
    """Which candidate of each several-candidate row is reported, and what the others reached."""
    averages = summary[summary.column == AVERAGE]
    notes = []
    for row in rows:
        lines = averages[(averages.label == row.label) & (averages["rank"] == (row.rank or ""))]
        if row.candidates > 1 and not lines.empty:
            reached = ", ".join(f"`{m}` {number(v)}" for m, v in zip(lines.method, lines.value, strict=True))
            won = lines.method[lines.won.astype(bool)].iloc[0]
            only = " (the only one run)" if len(lines) == 1 else ", chosen by Avg. over seeds"
            notes.append(f"{row.label} {row.rank}: reported `{won}`{only}. Avg.: {reached}.")
    return notes


def number(value: float, column: str = AVERAGE, sign: str = "-") -> str:
    """A score, a loss or a difference as text; sign: "+" shows it also where it is positive."""
    return "-" if pd.isna(value) else f"{value:{sign}.{DIGITS if column == LOSS else 2}f}"


def ends(low: float, high: float, column: str) -> str:
    """The interval of a difference as text."""
    return "no interval" if pd.isna(low) else f"{number(low, column, '+')} to {number(high, column, '+')}"


def csv(table: str, summary: pd.DataFrame, entries: Mapping[str, Entry], paper: pd.DataFrame) -> str:
    """The table in long format: each seed's score, the mean over seeds with its statistics, and the paper's numbers."""
    means = summary.assign(seed="mean")
    seeds = [
        means[(means.method == entry.method) & (means.column == column)]
        .drop(columns=OVER_SEEDS)
        .assign(seed=str(seed), value=value)
        for entry in entries.values()
        for seed, scores in entry.scores.assign(**{AVERAGE: entry.averages}).iterrows()
        for column, value in scores.items()
    ]
    measured = pd.concat([means, *seeds]).drop(columns="seeds").assign(source="measured")
    whole = ["r", "params", "n_items"]
    measured[whole] = measured[whole].astype("Int64").astype(object)
    frame = pd.concat([measured, long_form(paper)]).assign(table=table)
    return str(frame[CSV].to_csv(index=False, float_format="%.6f", lineterminator="\n"))


OVER_SEEDS = ["std", "ci_low", "ci_high", "against", "difference", "difference_low", "difference_high", "p", "p_holm"]
CSV = [
    "table", "source", "label", "rank", "method", "r", "params", "won", "seed", "column", "value", "std", "n_items",
    "ci_low", "ci_high", "against", "difference", "difference_low", "difference_high", "p", "p_holm",
]  # fmt: skip

"""What a table says of the measured side: values, spreads, intervals and comparisons."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from scripts.table import statistics
from scripts.table.grid import Row

AVERAGE = "avg"
LOSS = "validation_loss"  # nats per labelled token of the held-out examples, mean over training sets; lower is better
HELD_OUT = "held_out"  # stands among the benchmarks for the held-out examples, with the training sets for its tasks
Items = Mapping[str, pd.DataFrame]  # benchmark -> index (task, item id), sorted; columns (column of the table, seed)


@dataclass(frozen=True)
class Entry:
    """What one method reached.

    rank, params: at which the adapter computes; trainable parameters, counted; None for a vanilla row
    scores: index seed, a column per table column, percent, and LOSS; nan where a cell failed or did not record it
    items: the items behind the scores, for each seed
    averaged: the columns whose mean is the average
    """

    method: str
    rank: int | None
    params: int | None
    scores: pd.DataFrame
    items: Items
    averaged: Sequence[str]

    @property
    def averages(self) -> pd.Series:
        """The average of each seed that has every score of it, by seed."""
        return self.scores[list(self.averaged)].dropna().mean(axis=1)

    def by_seed(self, column: str) -> pd.Series:
        """The score of each seed that has it, by seed, in a column, in AVERAGE or in LOSS."""
        if column == AVERAGE:
            return self.averages
        return self.scores[column].dropna() if column in self.scores else pd.Series(dtype=float)


def summarise(
    rows: Sequence[Row], columns: Sequence[str], entries: Mapping[str, Entry], per_task: Collection[str]
) -> pd.DataFrame:
    """Everything the table says of the measured side: one line per (row, candidate, column, AVERAGE or LOSS).

    per_task: benchmarks whose score is a mean over tasks or languages; the others are means over items.
    The better candidate of a row is the one with the higher average over seeds, as the paper reports it.
    The p-values are Holm-adjusted over all comparisons of the reported candidates of this table.
    """
    lines = []
    for row in rows:
        run = [entries[method] for method in row.methods if method in entries]
        won = better(run) if run else None
        for entry in run:
            base = entries.get(row.against or "")
            for column in [*columns, AVERAGE, LOSS]:
                pick = partial(strata, column=column, averaged=entry.averaged, per_task=per_task)
                lines.append(_line(row, entry, column, base, pick) | {"won": entry is won})
    frame = pd.DataFrame(lines, columns=LINE)
    tested = frame.index[frame.won & frame.p.notna()]
    frame["p_holm"] = np.nan
    frame.loc[tested, "p_holm"] = statistics.holm(list(frame.loc[tested, "p"]))
    return frame


def better(candidates: Sequence[Entry]) -> Entry:
    """The candidate of a row that the table reports: the one with the higher average, over the seeds of all of them.

    One without an average comes last; over its own seeds each, where there is no seed that all have.
    """
    averages = pd.DataFrame({place: entry.averages for place, entry in enumerate(candidates)})  # (seeds, candidates)
    known = averages.dropna(axis=1, how="all")
    shared = known.dropna()
    means = (known if shared.empty else shared).mean()
    return candidates[int(means.idxmax()) if len(means) else 0]


LINE = [
    "label", "rank", "method", "r", "params", "won", "column", "value", "std", "seeds", "n_items", "ci_low", "ci_high",
    "against", "difference", "difference_low", "difference_high", "p",
]  # fmt: skip
UNKNOWN = dict.fromkeys(("value", "std", "ci_low", "ci_high"), np.nan)
UNCOMPARED = dict.fromkeys(("difference", "difference_low", "difference_high", "p"), np.nan)


def _line(
    row: Row, entry: Entry, column: str, base: Entry | None, pick: Callable[..., statistics.Strata]
) -> dict[str, Any]:
    per_seed = entry.by_seed(column)
    line: dict[str, Any] = {
        "label": row.label, "rank": row.rank or "", "method": entry.method, "r": entry.rank, "params": entry.params,
        "column": column, "seeds": len(per_seed), "n_items": sum(map(len, items_of(column, entry).values())),
    }  # fmt: skip
    if per_seed.empty:  # its cells failed, or did not record it
        return line | UNKNOWN | UNCOMPARED
    value, std = statistics.spread(list(per_seed))
    found = statistics.estimate(pick(items_of(column, entry)))
    low, high = np.clip(found.interval, 0.0, np.inf if column == LOSS else 100.0)  # no score is outside
    line |= {"value": value, "std": std, "ci_low": low, "ci_high": high}
    if base is None or base is entry or not comparable(entry, base, column):
        return line | UNCOMPARED
    found = statistics.estimate(pick(difference(entry, base, column)))
    low, high = found.interval
    compared = {"difference": found.mean, "difference_low": low, "difference_high": high, "p": found.p_value}
    return line | compared | {"against": base.method}


def strata(items: Items, column: str, averaged: Sequence[str], per_task: Collection[str]) -> statistics.Strata:
    """Strata of a column, of AVERAGE or of LOSS, over the seeds that all of its benchmarks have.

    In the average, columns over the same items are first added item by item. Such are the two scores of a benchmark
    that is judged by F1 and by exact match.
    """
    wanted = list(averaged) if column == AVERAGE else [column]
    found = {name: [c for c in wanted if c in frame] for name, frame in items.items()}
    behind = {name: sum(items[name][c] for c in own) / len(wanted) for name, own in found.items() if own}
    seeds = sorted(set.intersection(*(set(frame.columns) for frame in behind.values())))
    parts = []
    for name, frame in behind.items():
        tasks = frame.index.get_level_values("task").to_numpy(str)
        parts += statistics.strata(frame[seeds].to_numpy(float).T, tasks, name in per_task or name == HELD_OUT)
    return parts


def items_of(column: str, entry: Entry) -> Items:
    """The items behind a column, AVERAGE or LOSS, by benchmark, with all their columns."""
    wanted = set(entry.averaged) if column == AVERAGE else {column}
    return {name: frame for name, frame in entry.items.items() if wanted & set(frame.columns.levels[0])}


def comparable(entry: Entry, base: Entry, column: str) -> bool:
    """Whether both have the column, over the same items and for the same seeds, so that they can be paired.

    With seeds in common alone the difference would not be the one of the two numbers that are shown.
    """
    mine, theirs = items_of(column, entry), items_of(column, base)
    if not mine or mine.keys() != theirs.keys():
        return False
    same_items = all(frame.index.equals(theirs[name].index) for name, frame in mine.items())
    seeds = set(entry.by_seed(column).index)
    return same_items and bool(seeds) and seeds == set(base.by_seed(column).index)


def difference(entry: Entry, base: Entry, column: str) -> Items:
    """Seed by seed and item by item, `entry` less `base`: of two that are comparable."""
    mine = items_of(column, entry)
    shared = {name: frame.columns.intersection(base.items[name].columns) for name, frame in mine.items()}
    return {name: frame[shared[name]] - base.items[name][shared[name]] for name, frame in mine.items()}


def is_better(difference: float, column: str) -> bool:
    """Whether a difference of this sign is a gain: of a loss, a negative one."""
    return difference < 0 if column == LOSS else difference > 0


def drawn(line: pd.Series) -> tuple[float | None, float, float, float]:
    """Parameters, value and the ends of its interval of a line of the summary; the value where it has no interval."""
    value = float(line["value"])
    low, high = (value if pd.isna(end) else float(end) for end in (line["ci_low"], line["ci_high"]))
    return None if pd.isna(line["params"]) else float(line["params"]), value, low, high


def reported(summary: pd.DataFrame, row: Row) -> pd.DataFrame:
    """The lines of the row's better candidate, indexed by column; empty where the row did not run."""
    mine = (summary.label == row.label) & (summary["rank"] == (row.rank or "")) & summary.won.astype(bool)
    return summary[mine].set_index("column")

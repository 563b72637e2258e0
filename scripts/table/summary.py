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


@dataclass(frozen=True)
class Entry:
    """What one method reached, over all seeds."""

    method: str
    rank: int | None
    params: int | None  # counted, trainable
    scores: pd.DataFrame  # index seed, a column per table column, percent; nan where a cell failed
    items: Mapping[str, pd.DataFrame]  # benchmark -> index item id; `task` and table columns, percent, mean over seeds

    @property
    def average(self) -> float:
        """Mean over the columns of the means over seeds; nan where a column has no score at all."""
        return float(self.scores.mean().mean(skipna=False))

    @property
    def averages(self) -> pd.Series:
        """The average of each seed that has every score, by seed."""
        return self.scores.dropna().mean(axis=1)


def summarise(
    rows: Sequence[Row], columns: Sequence[str], entries: Mapping[str, Entry], per_task: Collection[str]
) -> pd.DataFrame:
    """Everything the table says of the measured side: one line per (row, candidate, column or average).

    per_task: benchmarks whose score is a mean over tasks or languages; the others are means over items.
    The better candidate of a row is the one with the higher average over its seeds, as the paper reports it.
    The p-values are Holm-adjusted over all comparisons of the reported candidates of this table.
    """
    lines = []
    for row in rows:
        run = [entries[method] for method in row.methods if method in entries]
        won = better(run) if run else None
        for entry in run:
            base = entries.get(row.against or "")
            for column in [*columns, AVERAGE]:
                pick = partial(strata, column=column, columns=columns, per_task=per_task)
                lines.append(_line(row, entry, column, base, pick) | {"won": entry is won})
    frame = pd.DataFrame(lines, columns=LINE)
    tested = frame.index[frame.won & frame.p.notna()]
    frame["p_holm"] = np.nan
    frame.loc[tested, "p_holm"] = statistics.holm(list(frame.loc[tested, "p"]))
    return frame


def better(candidates: Sequence[Entry]) -> Entry:
    """The candidate of a row that the table reports: the one with the higher average over its seeds."""
    return max(candidates, key=lambda entry: -np.inf if np.isnan(entry.average) else entry.average)


LINE = [
    "label", "rank", "method", "r", "params", "won", "column", "value", "std", "seeds", "n_items", "ci_low", "ci_high",
    "against", "difference", "p",
]  # fmt: skip


def _line(
    row: Row, entry: Entry, column: str, base: Entry | None, pick: Callable[..., statistics.Strata]
) -> dict[str, Any]:
    per_seed = entry.averages if column == AVERAGE else entry.scores[column].dropna()
    line: dict[str, Any] = {
        "label": row.label, "rank": row.rank or "", "method": entry.method, "r": entry.rank, "params": entry.params,
        "column": column, "seeds": len(per_seed), "n_items": sum(map(len, _items_of(column, entry).values())),
    }  # fmt: skip
    if per_seed.empty:  # its cells failed
        return line | dict.fromkeys(("value", "std", "ci_low", "ci_high", "difference", "p"), np.nan)
    value, std = statistics.spread(list(per_seed))
    low, high = statistics.interval(pick(entry.items))
    line |= {"value": value, "std": std, "ci_low": low, "ci_high": high}
    mine, theirs = (_items_of(column, other) for other in (entry, base or entry))
    if base is None or base is entry or not same_items(mine, theirs):
        return line | {"difference": np.nan, "p": np.nan}
    parts = pick({name: difference(mine[name], theirs[name]) for name in mine})
    return line | {"against": base.method, "difference": statistics.score(parts), "p": statistics.p_value(parts)}


def strata(
    items: Mapping[str, pd.DataFrame], column: str, columns: Sequence[str], per_task: Collection[str]
) -> statistics.Strata:
    """Strata of one column or of the average. In the average, columns over the same items are first added item by item.

    Such are the two scores of a benchmark that is judged by F1 and by exact match.
    """
    wanted = columns if column == AVERAGE else [column]
    parts = []
    for benchmark, frame in items.items():
        own = [c for c in wanted if c in frame]
        if own:
            values = frame[own].sum(axis=1).to_numpy(float) / len(wanted)
            parts += statistics.strata(values, frame["task"].to_numpy(str), benchmark in per_task)
    return parts


def difference(frame: pd.DataFrame, base: pd.DataFrame) -> pd.DataFrame:
    """Item by item, `frame` less `base`: of two entries on the same items."""
    scores = frame.columns.drop("task")
    return (frame[scores] - base.loc[frame.index, scores]).assign(task=frame["task"])


def same_items(items: Mapping[str, pd.DataFrame], base: Mapping[str, pd.DataFrame]) -> bool:
    """Whether both are of the same benchmarks and items, so that they can be paired."""
    return items.keys() == base.keys() and all(set(items[name].index) == set(base[name].index) for name in items)


def _items_of(column: str, entry: Entry) -> dict[str, pd.DataFrame]:
    """The items behind a column of the table; behind the average all of them."""
    return {name: frame for name, frame in entry.items.items() if column == AVERAGE or column in frame}


def reported(summary: pd.DataFrame, row: Row) -> pd.DataFrame:
    """The lines of the row's better candidate, indexed by column; empty where the row did not run."""
    mine = (summary.label == row.label) & (summary["rank"] == (row.rank or "")) & summary.won.astype(bool)
    return summary[mine].set_index("column")

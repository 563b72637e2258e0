"""One renderer for every table: measured beside the paper's numbers, as Markdown, CSV and a plot.

The output depends on the scores alone: no times, dates or paths, so the same runs give the same bytes.
"""

import io
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

from scripts import runs, stats
from scripts.grid import Row

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

AVERAGE = "avg"
PRINTED = runs.ROOT / "results" / "paper" / "printed"  # results/paper itself is for the tables of that profile
LABELS = {"mmlu": "MMLU", "bbh": "BBH", "gsm8k": "GSM8K", "tydiqa": "TyDi QA", "humaneval": "HumanEval"}
METRICS = {"tydiqa_f1": " F1", "tydiqa_em": " EM", "humaneval": " P@1"}


@dataclass(frozen=True)
class Entry:
    """What one method reached, over all seeds."""

    method: str
    rank: int | None
    params: int | None  # counted, trainable
    scores: pd.DataFrame  # index seed, a column per table column, percent
    items: Mapping[str, pd.DataFrame]  # benchmark -> index item id; `task` and table columns, percent, mean over seeds

    @property
    def average(self) -> float:
        """Mean over the columns of the means over seeds."""
        return float(self.scores.mean().mean())


def load_paper(path: Path) -> pd.DataFrame:
    """The paper's printed numbers, as text, indexed by row label and rank ('' where there is none)."""
    return pd.read_csv(path, dtype=str, keep_default_na=False).set_index(["label", "rank"])


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
    frame.loc[tested, "p_holm"] = stats.holm(list(frame.loc[tested, "p"]))
    return frame


def better(candidates: Sequence[Entry]) -> Entry:
    """The candidate of a row that the table reports: the one with the higher average over its seeds."""
    return max(candidates, key=lambda entry: entry.average)


LINE = [
    "label", "rank", "method", "r", "params", "won", "column", "value", "std", "seeds", "n_items", "ci_low", "ci_high",
    "against", "difference", "p",
]  # fmt: skip


def _line(row: Row, entry: Entry, column: str, base: Entry | None, pick: Callable[..., stats.Strata]) -> dict[str, Any]:
    per_seed = entry.scores.mean(axis=1) if column == AVERAGE else entry.scores[column]
    value, std = stats.spread(list(per_seed))
    low, high = stats.interval(pick(entry.items))
    line = {
        "label": row.label, "rank": row.rank or "", "method": entry.method, "r": entry.rank, "params": entry.params,
        "column": column, "value": value, "std": std, "seeds": len(entry.scores),
        "n_items": _count(entry.items, column), "ci_low": low, "ci_high": high,
    }  # fmt: skip
    if base is None or base is entry or not same_items(entry, base):
        return line | {"against": None, "difference": np.nan, "p": np.nan}
    differences = {b: difference(entry.items[b], base.items[b]) for b in entry.items}
    parts = pick(differences)
    return line | {"against": base.method, "difference": stats.score(parts), "p": stats.p_value(parts)}


def strata(
    items: Mapping[str, pd.DataFrame], column: str, columns: Sequence[str], per_task: Collection[str]
) -> stats.Strata:
    """Strata of one column, or of the average: there, columns over the same items (TyDi QA's two) are added first."""
    wanted = columns if column == AVERAGE else [column]
    parts = []
    for benchmark, frame in items.items():
        own = [c for c in wanted if c in frame]
        if own:
            values = frame[own].sum(axis=1).to_numpy(float) / len(wanted)
            parts += stats.strata(values, frame["task"].to_numpy(str), benchmark in per_task)
    return parts


def difference(frame: pd.DataFrame, base: pd.DataFrame) -> pd.DataFrame:
    """Item by item, `frame` less `base`: of two entries on the same items."""
    scores = frame.columns.drop("task")
    return (frame[scores] - base.loc[frame.index, scores]).assign(task=frame["task"])


def same_items(entry: Entry, base: Entry) -> bool:
    """Whether both were tested on the same items, so that they can be paired."""
    return all(set(entry.items[b].index) == set(base.items[b].index) for b in entry.items)


def _count(items: Mapping[str, pd.DataFrame], column: str) -> int:
    return sum(len(frame) for frame in items.values() if column == AVERAGE or column in frame)


def titles(columns: Sequence[str], labels: Mapping[str, str]) -> dict[str, str]:
    """Headings of the columns; `labels` by benchmark, where its data has another name than the paper's benchmark."""
    names = LABELS | dict(labels)
    return {column: names[column.split("_")[0]] + METRICS.get(column, "") for column in columns} | {AVERAGE: "Avg."}


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
    shown = [*columns, AVERAGE]
    lines = grid_lines(rows, shown, summary, paper)
    table = _pipe(["Method", "Rank", "Source", "# Param.", *(head[c] for c in shown)], lines)
    intervals = _pipe(["Method", "Rank", *(head[c] for c in shown)], interval_lines(rows, shown, summary))
    copied = "paper†: copied by the paper from PRoLoRA (Wang et al., 2024b)."
    notes = [*notes, copied] if "true" in set(paper.copied_from_prolora) else notes
    parts = [f"# {title}", table, "## Notes", "\n".join(f"- {note}" for note in [*notes, *_comparison_notes(summary)])]
    if not summary.empty:
        parts += ["## 95% confidence intervals (bootstrap over items, measured)", intervals]
    return "\n\n".join(parts) + "\n"


def grid_lines(
    rows: Sequence[Row], shown: Sequence[str], summary: pd.DataFrame, paper: pd.DataFrame
) -> list[list[str]]:
    """The cells of the table, two lines per row: label, rank, source, parameters and the `shown` columns as text."""
    lines = []
    for row in rows:
        printed = paper.loc[(row.label, row.rank or "")]
        mark = "†" if printed["copied_from_prolora"] == "true" else ""
        best = reported(summary, row)
        if best.empty:
            measured = [row.rank or "-", "measured", "-", *(["not run"] + [""] * (len(shown) - 1))]
        else:
            measured = [_rank(row, best), "measured", _params(best), *(_cell(best.loc[c]) for c in shown)]
        lines.append([row.label, *measured])
        lines.append([row.label, row.rank or "-", f"paper{mark}", printed["params"] or "-", *printed[list(shown)]])
    return lines


def interval_lines(rows: Sequence[Row], shown: Sequence[str], summary: pd.DataFrame) -> list[list[str]]:
    """Label, rank and the 95% interval of each `shown` column, of the rows that ran."""
    lines = []
    for row in rows:
        best = reported(summary, row)
        if not best.empty:
            cells = [f"{best.loc[c, 'ci_low']:.1f} to {best.loc[c, 'ci_high']:.1f}" for c in shown]
            lines.append([row.label, _rank(row, best), *cells])
    return lines


def reported(summary: pd.DataFrame, row: Row) -> pd.DataFrame:
    """The lines of the row's better candidate, indexed by column; empty where the row did not run."""
    mine = (summary.label == row.label) & (summary["rank"] == (row.rank or "")) & summary.won.astype(bool)
    return summary[mine].set_index("column")


def _rank(row: Row, best: pd.DataFrame) -> str:
    rank = best["r"].iloc[0]
    if pd.isna(rank):
        return "-"
    return str(int(rank)) if row.rank == str(int(rank)) else f"{int(rank)} (of {row.rank})"


def _params(best: pd.DataFrame) -> str:
    params = best["params"].iloc[0]
    return "-" if pd.isna(params) else f"{int(params):,}"


def _cell(line: pd.Series) -> str:
    text = f"{line['value']:.2f}" + ("" if pd.isna(line["std"]) else f" ± {line['std']:.2f}")
    return f"{text} {_mark(line)}".rstrip()


def _mark(line: pd.Series) -> str:
    if pd.isna(line["p_holm"]) or line["p_holm"] >= stats.LEVEL:
        return ""
    return "▲" if line["difference"] > 0 else "▼"


def _comparison_notes(summary: pd.DataFrame) -> list[str]:
    tested = summary[summary.p_holm.notna()]
    if tested.empty:
        return ["No paired test: no row was run together with the LoRA of its budget."]
    marked = tested[tested.p_holm < stats.LEVEL]
    notes = [
        f"▲ better, ▼ worse than LoRA at the same budget: paired sign-flip test over items, Holm-adjusted over the "
        f"{len(tested)} comparisons of this table, 5% level. {len(marked)} of {len(tested)} are significant; an "
        "unmarked number in a tested row is *not* significantly different."
    ]
    for (label, rank, against), lines in tested.groupby(["label", "rank", "against"], sort=False):
        average = lines.set_index("column").loc[AVERAGE]
        notes.append(
            f"{f'{label} {rank}'.strip()} against `{against}`: Avg. {average['difference']:+.2f}, "
            f"adjusted p = {average['p_holm']:.3f}."
        )
    return notes


def candidate_notes(rows: Sequence[Row], summary: pd.DataFrame) -> list[str]:
    """Which candidate of each several-candidate row is reported, and what the others reached."""
    averages = summary[summary.column == AVERAGE]
    notes = []
    for row in rows:
        lines = averages[(averages.label == row.label) & (averages["rank"] == (row.rank or ""))]
        if "/" in (row.rank or "") and not lines.empty:
            reached = ", ".join(f"`{m}` {v:.2f}" for m, v in zip(lines.method, lines.value, strict=True))
            won = lines.method[lines.won.astype(bool)].iloc[0]
            only = " (the only one run)" if len(lines) == 1 else ", chosen by Avg. over seeds"
            notes.append(f"{row.label} {row.rank}: reported `{won}`{only}. Avg.: {reached}.")
    return notes


def _pipe(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    body = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in body)


def csv(table: str, summary: pd.DataFrame, entries: Mapping[str, Entry], paper: pd.DataFrame) -> str:
    """The table in long format: each seed's score, the mean over seeds with its statistics, and the paper's numbers."""
    means = summary.assign(seed="mean")
    seeds = [
        means[(means.method == entry.method) & (means.column == column)]
        .drop(columns=["std", "ci_low", "ci_high", "against", "difference", "p", "p_holm"])  # these are over seeds
        .assign(seed=str(seed), value=value)
        for entry in entries.values()
        for seed, scores in entry.scores.assign(**{AVERAGE: entry.scores.mean(axis=1)}).iterrows()
        for column, value in scores.items()
    ]
    measured = pd.concat([means, *seeds]).drop(columns="seeds").assign(source="measured")
    whole = ["r", "params", "n_items"]
    measured[whole] = measured[whole].astype("Int64").astype(object)
    frame = pd.concat([measured, _paper_long(paper)]).assign(table=table)
    return str(frame[CSV].to_csv(index=False, float_format="%.4f", lineterminator="\n"))


CSV = [
    "table", "source", "label", "rank", "method", "r", "params", "won", "seed", "column", "value", "std", "n_items",
    "ci_low", "ci_high", "against", "difference", "p", "p_holm",
]  # fmt: skip


def _paper_long(paper: pd.DataFrame) -> pd.DataFrame:
    scores = [column for column in paper.columns if column not in ("source", "params", "copied_from_prolora")]
    long = paper.reset_index().melt(["label", "rank", "params"], scores, var_name="column", value_name="value")
    return long.assign(source="paper", value=long.value.astype(float))


def plot(title: str, rows: Sequence[Row], summary: pd.DataFrame, paper: pd.DataFrame) -> bytes:
    """Average score against trainable parameters as PNG, measured and the paper's in panels of their own.

    A colour is a row, in both panels; vanilla rows, which train nothing, are dashed lines.
    """
    figure, axes = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for axis, name in zip(axes, ["measured, 95% intervals", "paper"], strict=True):
        axis.set(title=name, xlabel="trainable parameters", ylabel="average score, percent", xscale="log")
        axis.grid(alpha=0.3)
    for i, row in enumerate(rows):
        style = {"color": f"C{i}", "marker": "os^D"[i // 10], "label": f"{row.label} {row.rank or ''}".strip()}
        printed = paper.loc[(row.label, row.rank or "")]
        _point(axes[1], style, parameter_count(printed["params"]), float(printed[AVERAGE]))
        best = reported(summary, row)
        if not best.empty:
            line = best.loc[AVERAGE]
            _point(axes[0], style, line["params"], line["value"])
            axes[0].vlines(line["params"], line["ci_low"], line["ci_high"], color=style["color"], alpha=0.5)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.suptitle(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()


def _point(axis: Axes, style: Mapping[str, Any], params: float | None, value: float) -> None:
    if params is None or np.isnan(params):
        axis.axhline(value, linestyle="--", linewidth=1, color=style["color"], label=style["label"])
    else:
        axis.plot(params, value, linestyle="none", **style)


def parameter_count(printed: str) -> float | None:
    """Parameters as the paper prints them ("5.00M"); None where it prints none."""
    return float(printed.removesuffix("M")) * 1e6 if printed else None

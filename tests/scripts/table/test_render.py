"""The rendered table, on made-up scores; the paper's numbers, against their own averages."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from scripts.config import ROOT, choices, compose
from scripts.table import paper as paper_numbers
from scripts.table import render
from scripts.table.grid import Row
from scripts.table.paper import PRINTED, beside, load_paper, printed, printed_point, score_columns
from scripts.table.plot import plot
from scripts.table.summary import HELD_OUT, LOSS, Entry, summarise

COLUMNS = ["bbh", "tydiqa_f1", "tydiqa_em"]
ROWS = [
    Row("LoRA", "2", ("lora_r2",), None),
    Row("VeRA", "256", (), "lora_r2"),
    Row("MoS", "4/8", ("mos_r4", "mos_r8"), "lora_r2", candidates=2),
]
PER_TASK = {"bbh", "tydiqa"}
CFG = OmegaConf.create({"table": {"columns": COLUMNS}, "benchmark": compose([]).benchmark})
HEAD = render.titles(CFG, {})


def entry(method: str, rank: int, bbh: float, tydiqa: float, seeds: int = 1, loss: float | None = None) -> Entry:
    """`bbh` percent of 100 items in two tasks, `tydiqa` of 40 in two languages (EM half of F1); seeds 1 point apart.

    loss: of 40 validation examples of two sets, give or take 0.1 from one to the next; seeds 0.01 apart
    """

    def frame(values: np.ndarray, apart: float = 1, **columns: float) -> pd.DataFrame:
        tasks = np.repeat(["a", "b"], len(values) // 2)
        index = pd.MultiIndex.from_arrays([tasks, [f"item {i}" for i in range(len(values))]], names=["task", "id"])
        scores = {(c, seed): weight * (values + apart * seed) for c, weight in columns.items() for seed in range(seeds)}
        return pd.DataFrame(scores, index)

    def right(share: float, count: int) -> np.ndarray:
        return (np.arange(count) % 20 < share / 5) * 100.0

    items = {"bbh": frame(right(bbh, 100), bbh=1), "tydiqa": frame(right(tydiqa, 40), tydiqa_f1=1, tydiqa_em=0.5)}
    scores = {"bbh": bbh, "tydiqa_f1": tydiqa, "tydiqa_em": tydiqa / 2}
    table = pd.DataFrame({c: [value + seed for seed in range(seeds)] for c, value in scores.items()})
    if loss is not None:
        items[HELD_OUT] = frame(loss + np.tile([-0.1, 0.1], 20), apart=0.01, **{LOSS: 1})
        table[LOSS] = [loss + 0.01 * seed for seed in range(seeds)]
    return Entry(method, rank, 1234567, table, items, COLUMNS)


@pytest.fixture
def paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    (tmp_path / "tablex.csv").write_text(
        "source,label,rank,params,bbh,tydiqa_f1,tydiqa_em,avg,copied_from_prolora\n"
        "paper,LoRA,2,5.00M,36.22,48.67,35.70,40.20,true\n"
        "paper,VeRA,256,1.42M,35.10,48.39,36.38,39.96,false\n"
        "paper,MoS,4/8,5.00M,37.29,50.21,37.19,41.56,false\n"
    )
    monkeypatch.setattr(paper_numbers, "PRINTED", tmp_path)
    return load_paper("tablex")


@pytest.fixture
def entries() -> dict[str, Entry]:
    return {
        "lora_r2": entry("lora_r2", 2, 20, 40),
        "mos_r4": entry("mos_r4", 4, 25, 40),
        "mos_r8": entry("mos_r8", 8, 70, 40),
    }


def test_markdown_word_for_word(entries: dict[str, Entry], paper: pd.DataFrame) -> None:
    summary = summarise(ROWS, COLUMNS, entries, PER_TASK)
    head = render.titles(CFG, {"tydiqa": "XQuAD"})
    notes = ["A note.", *render.candidate_notes(ROWS, summary)]
    text = render.markdown("Table X", ROWS, COLUMNS, summary, paper, head, notes)
    assert text.startswith(
        """# Table X

| Method | Rank | Source | # Param. | BBH | XQuAD F1 | XQuAD EM | Avg. | Val. loss ↓ |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
| LoRA | 2 | measured | 1,234,567 | 20.00 | 40.00 | 20.00 | 26.67 | - |
| LoRA | 2 | paper† | 5.00M | 36.22 | 48.67 | 35.70 | 40.20 | - |
| VeRA | 256 | measured | - | not run |  |  |  |  |
| VeRA | 256 | paper | 1.42M | 35.10 | 48.39 | 36.38 | 39.96 | - |
| MoS | 8 (of 4/8) | measured | 1,234,567 | 70.00 ▲ | 40.00 | 20.00 | 43.33 ▲ | - |
| MoS | 4/8 | paper | 5.00M | 37.29 | 50.21 | 37.19 | 41.56 | - |

## Notes

- A note.
- MoS 4/8: reported `mos_r8`, chosen by Avg. over seeds. Avg.: `mos_r4` 28.33, `mos_r8` 43.33.
- paper†: copied by the paper from PRoLoRA (Wang et al., 2024b).
- One seed: the intervals and tests are over the items alone. They know nothing of how seeds vary, and another seed \
may order the rows differently.
"""
    )
    assert "Holm-adjusted over the 4 comparisons of this table, 5% level. 2 of 4 are significant" in text
    assert re.search(
        r"- MoS 4/8 against `lora_r2`: Avg. \+16.67 \(\+1\d.\d\d to \+\d+.\d\d\), adjusted p < 0.001", text
    )
    assert "| MoS | 8 (of 4/8) | " in text.split("## 95% confidence intervals")[1]


def test_a_worse_row_is_marked_as_worse(paper: pd.DataFrame) -> None:
    pair = {"lora_r2": entry("lora_r2", 2, 70, 40), "mos_r4": entry("mos_r4", 4, 20, 40)}
    summary = summarise(ROWS, COLUMNS, pair, PER_TASK)
    text = render.markdown("T", ROWS, COLUMNS, summary, paper, HEAD, [])
    assert "| MoS | 4 (of 4/8) | measured | 1,234,567 | 20.00 ▼ | 40.00 | 20.00 | 26.67 ▼ | - |" in text


def test_seeds_give_mean_and_deviation_and_the_candidate_is_chosen_by_the_mean(paper: pd.DataFrame) -> None:
    found = {"mos_r4": entry("mos_r4", 4, 30, 50, seeds=2), "mos_r8": entry("mos_r8", 8, 30, 45, seeds=2)}
    summary = summarise(ROWS, COLUMNS, found, PER_TASK)
    text = render.markdown("T", ROWS, COLUMNS, summary, paper, HEAD, [])
    assert (
        "| MoS | 4 (of 4/8) | measured | 1,234,567 | 30.50 ± 0.71 | 50.50 ± 0.71 | 25.50 ± 0.71 | 35.50 ± 0.71 | - |"
        in text
    )
    assert "No paired test" in text
    assert "- Intervals and tests are over seeds and items together." in text


def test_a_lower_loss_is_better(paper: pd.DataFrame) -> None:
    base, good, bad = (entry("x", 4, 30, 50, seeds=2, loss=loss) for loss in (1.5, 1.25, 1.75))
    for found, mark, sign in ((good, "▲", "-"), (bad, "▼", "+")):
        summary = summarise(ROWS, COLUMNS, {"lora_r2": base, "mos_r4": replace(found, method="mos_r4")}, PER_TASK)
        text = render.markdown("T", ROWS, COLUMNS, summary, paper, HEAD, [])
        assert f"| {found.scores[LOSS].mean():.4f} ± 0.0071 {mark} |" in text
        assert f"Val. loss {sign}0.2500 (" in text
        assert "1 of 5 are significant" in text


def test_a_published_table_from_before_the_loss_shows_a_dash(paper: pd.DataFrame, entries: dict[str, Entry]) -> None:
    summary = summarise(ROWS, COLUMNS, entries, PER_TASK)
    old = summary[summary.column != LOSS]
    shown = [*COLUMNS, "avg", LOSS]
    assert render.grid_lines(ROWS, shown, old, paper) == render.grid_lines(ROWS, shown, summary, paper)
    assert {line[-1] for line in render.interval_lines(ROWS, shown, old)} == {"-"}


def test_an_average_that_leaves_a_column_out(paper: pd.DataFrame, entries: dict[str, Entry]) -> None:
    kept = COLUMNS[1:]
    without = {name: replace(found, averaged=kept) for name, found in entries.items()}
    summary = summarise(ROWS, COLUMNS, without, PER_TASK)
    lines = render.grid_lines(ROWS, [*COLUMNS, "avg"], summary, beside(paper, kept))
    assert lines[0][-4:] == ["20.00", "40.00", "20.00", "30.00"]
    assert lines[1][-4:] == ["36.22", "48.67", "35.70", "-"]  # the paper's average is over all of them
    average = summary[(summary.column == "avg") & (summary.method == "lora_r2")].iloc[0]
    assert (average.value, average.n_items) == (30.0, 40)


def test_rows_on_other_items_are_not_compared(entries: dict[str, Entry]) -> None:
    bbh = entries["lora_r2"].items["bbh"]
    bbh.index = bbh.index.set_levels([f"other {i}" for i in range(100)], level="id")
    summary = summarise(ROWS, COLUMNS, entries, PER_TASK)
    tested = summary[summary.p.notna()]
    assert set(tested.column) == {"tydiqa_f1", "tydiqa_em"}  # neither BBH nor the average, of which BBH is a part


def test_rows_of_other_seeds_are_not_compared(paper: pd.DataFrame) -> None:
    """One seed in common would give a difference that is not the one of the two averages shown."""
    base, three = entry("lora_r2", 2, 20, 40, loss=1.5), entry("mos_r4", 4, 70, 40, seeds=3, loss=1.2)
    summary = summarise(ROWS, COLUMNS, {"lora_r2": base, "mos_r4": three}, PER_TASK)
    assert summary.p.isna().all()
    text = render.markdown("T", ROWS, COLUMNS, summary, paper, HEAD, [])
    assert not re.search("▲ \\||▼ \\|", text)
    for name in ("Avg.", "Val. loss"):
        assert f"- {name} of MoS 4/8 is not compared with `lora_r2`: other seeds or items." in text


def of_seeds(method: str, bbh: float, seeds: list[int]) -> Entry:
    """As `entry`, with what other seeds than these would have left out: their cells failed."""
    whole = entry(method, 4, bbh, 40, seeds=3)
    lost = [seed for seed in range(3) if seed not in seeds]
    scores = whole.scores.copy()
    scores.loc[lost, "bbh"] = np.nan
    return replace(whole, scores=scores, items=whole.items | {"bbh": whole.items["bbh"].drop(columns=lost, level=1)})


@pytest.mark.parametrize(
    ("first", "second", "won"),
    [
        (
            (30, [0, 1, 2]),
            (31, [0]),
            "mos_r8",
        ),  # on seed 0 the second has more, though seeds 1 and 2 give the first more
        ((30, [0]), (29, [0, 1, 2]), "mos_r4"),
        ((30, [0]), (29, [1, 2]), "mos_r8"),  # none in common: each over its own
        ((90, []), (20, [0, 1, 2]), "mos_r8"),  # no seed has an average
        ((90, []), (95, []), "mos_r4"),
    ],
)
def test_the_candidate_is_chosen_over_the_seeds_of_both(first: Any, second: Any, won: str) -> None:
    found = {"mos_r4": of_seeds("mos_r4", *first), "mos_r8": of_seeds("mos_r8", *second)}
    summary = summarise(ROWS, COLUMNS, found, PER_TASK)
    assert set(summary.method[summary.won]) == {won}


def test_csv_keeps_both_candidates_each_seed_and_the_paper(paper: pd.DataFrame) -> None:
    found = {"mos_r4": entry("mos_r4", 4, 30, 50, seeds=2), "mos_r8": entry("mos_r8", 8, 30, 45, seeds=2)}
    summary = summarise(ROWS, COLUMNS, found, PER_TASK)
    frame = pd.read_csv(io.StringIO(render.csv("table2", summary, found, paper)), dtype=str, keep_default_na=False)
    measured, printed = frame[frame.source == "measured"], frame[frame.source == "paper"]
    # candidates x (columns and average) x (two seeds and their mean), and the loss, which no seed has
    assert len(measured) == 2 * (4 * 3 + 1)
    assert len(printed) == 3 * 4
    best = measured[(measured.method == "mos_r4") & (measured.column == "avg")].set_index("seed")
    assert list(best.value) == ["35.500000", "35.000000", "36.000000"]
    assert list(best.won) == ["True"] * 3
    assert best.loc["mean", "std"] == "0.707107"
    assert best.loc["mean", "n_items"] == "140"
    assert list(printed[printed.label == "VeRA"].value) == ["35.100000", "48.390000", "36.380000", "39.960000"]


def test_the_same_scores_give_the_same_bytes(entries: dict[str, Entry], paper: pd.DataFrame) -> None:
    def everything() -> tuple[str, bytes]:
        summary = summarise(ROWS, COLUMNS, entries, PER_TASK)
        return render.csv("t", summary, entries, paper), plot("t", ROWS, summary, paper)

    first, second = everything(), everything()
    assert first == second
    assert first[1].startswith(b"\x89PNG")


def test_without_any_run_every_row_says_so(paper: pd.DataFrame) -> None:
    summary = summarise(ROWS, COLUMNS, {}, PER_TASK)
    text = render.markdown("T", ROWS, COLUMNS, summary, paper, HEAD, [])
    assert text.count("not run") == 3


@pytest.mark.parametrize("table", ["table1", "table2", "table3"])
def test_the_paper_s_averages_are_those_of_its_columns(table: str) -> None:
    paper = load_paper(table)
    scores = paper[[column for column in score_columns(paper) if column != "avg"]].astype(float)
    assert (scores.mean(axis=1) - paper.avg.astype(float)).abs().max() <= 0.0101
    assert set(paper.source) == {"paper"}


@pytest.mark.parametrize("table", ["table1", "table2", "table3"])
def test_every_row_of_a_table_has_the_paper_s_numbers(table: str) -> None:
    cfg = compose([f"table={table}"])
    paper = load_paper(table)
    assert [(row.label, row.rank or "") for row in cfg.table.rows] == list(paper.index)
    assert set(cfg.table.columns) <= set(paper.columns)


def test_the_paper_s_numbers_are_those_given() -> None:
    """tests/fixtures/paper_tables.json was read off the paper apart from results/printed."""
    given = json.loads((ROOT / "tests" / "fixtures" / "paper_tables.json").read_text(encoding="utf-8"))
    assert sorted(given) == ["table1", "table2", "table3"]
    for table, rows in given.items():
        paper = load_paper(table)
        for row, (_, ours) in zip(rows, paper.iterrows(), strict=True):
            scores = {column: value for column, value in row["scores"].items() if value is not None}
            assert {column: float(ours[column]) for column in scores} == scores
            assert (float(ours["avg"]), ours["params"] or None) == (row["avg"], row["params"])


def test_a_row_or_column_that_the_paper_lacks_is_a_dash_everywhere(
    entries: dict[str, Entry], paper: pd.DataFrame
) -> None:
    rows = [ROWS[0], Row("MoS", "64", ("mos_r8",), "lora_r2")]
    entries["mos_r8"].items["bbh"]["arc", 0] = entries["mos_r8"].scores["arc"] = 50.0
    entries["lora_r2"].items["bbh"]["arc", 0] = entries["lora_r2"].scores["arc"] = 25.0
    columns = [*COLUMNS, "arc"]
    entries = {name: replace(entries[name], averaged=columns) for name in ("lora_r2", "mos_r8")}
    paper = beside(paper, columns)
    summary = summarise(rows, columns, entries, PER_TASK)
    text = render.markdown("T", rows, columns, summary, paper, HEAD | {"arc": "ARC"}, [])
    assert "| MoS | 64 | paper | - | - | - | - | - | - | - |" in text
    assert "| LoRA | 2 | paper† | 5.00M | 36.22 | 48.67 | 35.70 | - | - | - |" in text  # an average of other columns
    frame = pd.read_csv(io.StringIO(render.csv("t", summary, entries, paper)), dtype=str)
    assert set(frame[frame.column == "arc"].source) == {"measured"}
    assert plot("t", rows, summary, paper).startswith(b"\x89PNG")
    assert printed_point(paper, rows[1]) is None


def test_a_table_that_the_paper_lacks_has_no_printed_number(entries: dict[str, Entry]) -> None:
    paper = load_paper("my_own")
    summary = summarise(ROWS, COLUMNS, entries, PER_TASK)
    text = render.markdown("T", ROWS, COLUMNS, summary, paper, HEAD, [])
    assert text.count("| paper | - | - | - | - | - | - |") == len(ROWS)
    assert printed(paper, ROWS[0], "avg") == "-"
    frame = pd.read_csv(io.StringIO(render.csv("my_own", summary, entries, paper)), dtype=str)
    assert set(frame.source) == {"measured"}
    assert plot("t", ROWS, summary, paper).startswith(b"\x89PNG")


def test_a_failed_cell_is_a_dash_and_the_average_too(entries: dict[str, Entry], paper: pd.DataFrame) -> None:
    entries["mos_r8"].scores["tydiqa_f1"] = np.nan
    del entries["mos_r4"]
    summary = summarise(ROWS, COLUMNS, entries, PER_TASK)
    text = render.markdown("T", ROWS, COLUMNS, summary, paper, HEAD, [])
    assert "| MoS | 8 (of 4/8) | measured | 1,234,567 | 70.00 ▲ | - | 20.00 | - | - |" in text
    assert plot("t", ROWS, summary, paper).startswith(b"\x89PNG")


def test_no_profile_writes_its_tables_over_the_paper_s_numbers() -> None:
    assert PRINTED not in [ROOT / "results" / profile for profile in choices("profile")]


def test_equal_scores_show_no_interval_and_say_why(paper: pd.DataFrame) -> None:
    found = {name: entry(name, 4, 0, 0) for name in ("lora_r2", "mos_r4")}
    summary = summarise(ROWS, COLUMNS, found, PER_TASK)
    text = render.markdown("T", ROWS, COLUMNS, summary, paper, HEAD, [])
    assert "| LoRA | 4 (of 2) | - | - | - | - | - |" in text.split("## 95% confidence intervals")[1]
    assert "No interval where all items have the same score: nothing shows how they vary." in text
    assert "Avg. +0.00 (no interval), adjusted p = 1.000" in text
    assert plot("T", ROWS, summary, paper).startswith(b"\x89PNG")


@pytest.mark.parametrize(("first", "others", "limits"), [(100.0, 0.0, (0, 3)), (0.0, 100.0, (97, 100))])
def test_no_interval_leaves_the_scale(first: float, others: float, limits: tuple[float, float]) -> None:
    """One of 100 items is right, or wrong: the score give or take 2 points would reach below 0, or above 100."""
    found = entry("mos_r4", 4, 0, 0)
    found.items["bbh"][("bbh", 0)] = np.r_[first, np.full(99, others)]
    line = summarise(ROWS, COLUMNS, {"mos_r4": found}, set()).query("column == 'bbh'").iloc[0]
    assert limits[0] <= line.ci_low < line.ci_high <= limits[1]
    assert (line.ci_low, line.ci_high)[others > 0] == others

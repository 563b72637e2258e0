"""The page of a study, from simulated results: whole, half finished, and of nothing at all."""

import io
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scripts.study import figure, plan, render, summary
from scripts.study.intervals import Parity
from scripts.study.runs import Result, Run, Store
from scripts.study.settings import StudySettings

ORIGIN = {
    "python": "3.11",
    "versions": {"torch": "2"},
    "git": "abc",
    "code": {"mos": "1"},
    "hardware": {"cpu": "some", "cores": 2, "torch_threads": 1, "gpu": None},
}
ROWS = (
    "[{label: LoRA 1, method: lora, overrides: ['method.r=1'], rate: 0.01, rank: 1},"
    "{label: LoRA 4, method: lora, overrides: ['method.r=4'], rate: 0.01, rank: 4},"
    "{label: MoS, method: mos_r4, rate: 0.01},{label: Pure, method: pure_sharing, rate: 0.01}]"
)
STORED = {"LoRA 1": 100.0, "LoRA 4": 300.0, "MoS": 200.0, "Pure": 100.0}  # bits, of 1,000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store([
        "profile=micro", "capacity=full", f"runs_dir={tmp_path}", f"capacity.rows={ROWS}",
        "capacity.doubled=[MoS,Pure]", "capacity.parity=[MoS]", "capacity.seeds=[1,2,3]",
        "capacity.facts={count: 250, first_token: 10, keys: 20, values: 16}",
        "capacity.claims=[{text: More, row: MoS, than: LoRA 1}, {text: Same, row: Pure, than: LoRA 1}]",
    ])  # fmt: skip


def simulated(study: StudySettings, bits: dict[str, float], twice: dict[str, float] | None = None) -> dict[Run, Result]:
    """Results with a little noise, and the same for rows of one seed that differ in nothing."""
    rng = np.random.default_rng(0)
    results: dict[Run, Result] = {}
    while waiting := plan.ready(study, results):
        for run in waiting:
            base = bits if run.steps == study.optimizer.steps else twice or bits
            noisy = base[run.label] + 10 * run.seed + rng.normal()
            results[run] = {
                "seed": run.seed, "rate": run.rate, "steps": run.steps, "parameters": 64, "recall": noisy / 10,
                "bits_per_parameter": noisy / 64, "cross_entropy": 1.0, "diverged": False, "seconds": 36.0,
                "started": "now", "provenance": ORIGIN,
            }  # fmt: skip
    return results


def test_what_is_stored_is_a_share_of_all_bits(store: Store) -> None:
    assert summary.stored(store.study, {"bits_per_parameter": 5.0, "parameters": 64}) == pytest.approx(32)


def test_a_whole_study_is_rendered_the_same_twice(store: Store, tmp_path: Path) -> None:
    results = simulated(store.study, STORED)
    paths = render.render(store, results, tmp_path / "one")
    again = render.render(store, dict(reversed(results.items())), tmp_path / "two")
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    page = paths[0].read_text(encoding="utf-8")
    assert "nan" not in page
    assert "Not all seeds are finished" not in page
    (_, more), _ = summary.claims(store.study, results)
    assert f"| More | MoS against LoRA 1 | {more.estimate.mean:+.2f} |" in page
    assert "No two of these rows change places" in page
    frame = pd.read_csv(paths[1])
    assert len(frame) == len(results)
    assert set(frame.part) == {"search", "reported", "doubled"}
    assert frame.git.notna().all()


def test_the_rank_that_equals_a_row_is_read_off_the_curve_of_the_seed(store: Store) -> None:
    found = summary.parity(store.study, "MoS", simulated(store.study, STORED))
    assert found.mean == pytest.approx(2, abs=0.05)
    assert found.low < 2 < found.high
    assert found.count == 3


def test_claims_are_paired_by_seed(store: Store) -> None:
    (_, more), (_, same) = summary.claims(store.study, simulated(store.study, STORED))
    assert list(more.by_seed) == [1, 2, 3]
    assert more.estimate.mean == pytest.approx(10, abs=0.3)
    assert more.estimate.high - more.estimate.low < 2  # the seeds' own 10 bits are taken out
    assert abs(same.estimate.mean) < 0.3


def test_an_order_that_changes_is_said(store: Store) -> None:
    results = simulated(store.study, STORED, twice=STORED | {"Pure": 400.0})
    assert "**Not converged**: with twice the steps MoS and Pure change places" in render.markdown(
        store.study, results, "micro"
    )


@pytest.mark.parametrize("finished", [0, 1, 5, 14, 20])
def test_a_study_that_is_not_finished_says_so(store: Store, tmp_path: Path, finished: int) -> None:
    results = dict(list(simulated(store.study, STORED).items())[:finished])
    page, csv, *_ = render.render(store, results, tmp_path)
    assert "Not all seeds are finished" in page.read_text(encoding="utf-8")
    assert "nan" not in page.read_text(encoding="utf-8")
    assert len(pd.read_csv(io.StringIO(csv.read_text(encoding="utf-8")))) == finished


def test_a_rate_at_the_edge_of_its_grid_is_marked(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MOST_RATES", 3)
    results = simulated(store.study, STORED)
    for run in results:
        results[run]["bits_per_parameter"] = run.rate
    best = max(plan.tried(store.study, store.study.rows[0], results))
    assert f"{best:.3g}*" in render.markdown(store.study, results, "micro")


@pytest.mark.parametrize(
    ("low", "high", "above", "below", "says"),
    [
        (8, 9, 0, 0, "holds"),
        (8, 9, 2, 0, "holds"),
        (8, 9, 0, 1, "cannot tell"),
        (1, 7.9, 0, 0, "does not hold"),
        (1, 7.9, 0, 2, "does not hold"),
        (1, 7.9, 1, 0, "cannot tell"),
        (7, 9, 0, 0, "cannot tell"),
        (math.nan, math.nan, 0, 0, "cannot tell"),
    ],
)
def test_eight_times_is_judged_by_its_interval(low: float, high: float, above: int, below: int, says: str) -> None:
    """A seed that is only a bound speaks neither against a higher rank, nor for a lower one."""
    assert render._eightfold(Parity(8.0, low, high, 5, above, below)) == says


def parity_cells(store: Store, bits: dict[str, float]) -> tuple[list[str], str]:
    """The line of MoS in the table of equal ranks, and the note below."""
    page = render.markdown(store.study, simulated(store.study, bits), "micro")
    section = page.partition("## The rank of LoRA")[2].partition("\n## ")[0]
    line = next(line for line in section.splitlines() if line.startswith("| MoS"))
    return [cell.strip() for cell in line.strip("|").split("|")], section


@pytest.mark.parametrize(
    ("stored", "rank", "says"),
    [
        (
            200.0,
            r"[12]\.\d",
            "or 99% of all bits, is a lower bound, and one below the lowest an upper bound; none is here.",
        ),
        (500.0, r"at least 4\.0", "; here 3 of 3 seeds of MoS are lower bounds."),
        (50.0, r"at most 1\.0", "; here 3 of 3 seeds of MoS are upper bounds."),
    ],
)
def test_a_rank_that_is_a_bound_says_so(store: Store, stored: float, rank: str, says: str) -> None:
    cells, section = parity_cells(store, STORED | {"MoS": stored})
    assert re.fullmatch(rank, cells[1])
    assert says in section


def test_rows_full_as_lora_is_are_a_bound_and_decide_nothing(store: Store) -> None:
    cells, section = parity_cells(store, STORED | {"LoRA 4": 995.0, "MoS": 996.0})
    assert cells[1] == "at least 4.0"
    assert cells[5] == "cannot tell"
    assert "3 of 3 seeds of MoS are lower bounds" in section


def test_the_page_says_where_the_rates_are_from(store: Store) -> None:
    assert "The rate was chosen on a seed of its own; * the best one tried" in render.markdown(store.study, {}, "micro")
    fixed = store.study.model_copy(update={"search_seed": None})
    page = render.markdown(fixed, {}, "micro")
    assert "chosen on a seed" not in page
    assert "The rates are those of the study's yaml; nothing was searched on this base model for it." in page


def test_every_curve_is_drawn(store: Store) -> None:
    """Of a yaml with more curves than LoRA's and MoS's."""
    rows = [row.model_copy(update={"curve": f"curve {i}"}) for i, row in enumerate(store.study.rows)]
    study = store.study.model_copy(update={"rows": rows})
    drawn = figure.draw(summary.lines(study, simulated(study, STORED)), "svg").decode()
    for i, row in enumerate(rows):
        assert f">curve {i}<" in drawn
        assert f">{row.label}<" in drawn
    assert len({colour for colour in figure.CURVES if colour in drawn}) == len(rows)

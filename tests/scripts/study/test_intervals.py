"""Intervals over seeds cover what they say; the rank of LoRA that stores as much is found on simulated curves."""

from math import isnan, log2

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from scripts.config import ROOT
from scripts.study import intervals

RANKS = [1, 2, 4, 8, 16, 64]


def test_an_interval_is_that_of_the_t_test() -> None:
    values = [3.0, 4.5, 4.0, 5.5, 3.5]
    found = intervals.estimate(values)
    ends = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.mean, found.low, found.high, found.count) == pytest.approx((4.1, ends.low, ends.high, 5))


def test_intervals_of_five_seeds_cover() -> None:
    rng = np.random.default_rng(0)
    found = [intervals.estimate(list(rng.normal(7, 2, 5))) for _ in range(2000)]
    assert np.mean([e.low <= 7 <= e.high for e in found]) == pytest.approx(0.95, abs=0.015)


def test_one_seed_has_no_interval_and_decides_nothing() -> None:
    alone = intervals.estimate([5.0])
    assert (alone.mean, alone.count, alone.known) == (5.0, 1, False)
    assert isnan(alone.low)
    assert intervals.verdict(alone) == "cannot tell"
    assert isnan(intervals.estimate([]).mean)


@pytest.mark.parametrize("value", [100.0, 0.1, 0.0])
def test_seeds_that_agree_have_no_interval_and_decide_nothing(value: float) -> None:
    """Full rows agree on every seed; so do rows that store nothing. 0.1 is no exact binary number."""
    same = intervals.estimate([value] * 3)
    assert (same.mean, same.count, same.known) == (value, 3, False)
    assert intervals.verdict(same) == "cannot tell"


@pytest.mark.parametrize(
    ("values", "says"),
    [([1.0, 1.1, 0.9], "holds"), ([-1.0, -1.1, -0.9], "does not hold"), ([1.0, -1.1, 0.5], "cannot tell")],
)
def test_verdicts(values: list[float], says: str) -> None:
    assert intervals.verdict(intervals.estimate(values)) == says


def test_so_many_seeds_would_tell() -> None:
    """Of studies with that many seeds four in five leave out 0."""
    differences = [0.0, 1.0, 2.0, -0.5]
    count = intervals.seeds_needed(differences)
    assert count is not None
    rng = np.random.default_rng(0)
    mean, spread = np.mean(differences), np.std(differences, ddof=1)
    low = [intervals.estimate(list(rng.normal(mean, spread, count))).low for _ in range(2000)]
    assert np.mean(np.asarray(low) > 0) == pytest.approx(0.8, abs=0.04)


def test_no_number_of_seeds_shows_no_difference() -> None:
    assert intervals.seeds_needed([1.0, -1.0]) is None


@given(st.floats(1, 64))
def test_the_rank_of_a_curve_is_found_again(rank: float) -> None:
    """LoRA stores 3 + 2 log2 r: a line over the logarithm, where interpolation is exact."""
    stored = [3 + 2 * np.log2(r) for r in RANKS]
    assert intervals.equal_rank(RANKS, stored, 3 + 2 * np.log2(rank)) == pytest.approx(rank)


@pytest.mark.parametrize("stored", [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 2.0, 6.0, 6.0, 6.0, 6.0]])
def test_outside_the_curve_its_ends_are_returned(stored: list[float]) -> None:
    assert intervals.equal_rank(RANKS, stored, 0.5) == 1
    assert intervals.equal_rank(RANKS, stored, 7.0) == 64


def test_a_full_row_equals_the_first_full_rank() -> None:
    """With so few facts that LoRA 4 holds all of them, MoS does not become worth LoRA 64."""
    assert intervals.equal_rank(RANKS, [40.0, 80.0, 100.0, 100.0, 100.0, 100.0], 100.0) == 4


@pytest.mark.parametrize("target", [99.0, 99.96, 100.0])
def test_what_is_as_good_as_full_counts_as_full(target: float) -> None:
    """Nearly full ranks differ by noise; a row that is full too equals the first of them, not one between them."""
    assert intervals.equal_rank([1, 2, 4, 8], [40.0, 80.0, 99.90, 99.95], target) == 4


def test_seeds_that_only_bound_the_rank_are_counted() -> None:
    """A seed above the whole curve, one that is full where the curve is, one below it, and one inside."""
    curves = [[40.0, 80.0], [40.0, 100.0], [40.0, 80.0], [40.0, 80.0]]
    found = intervals.parity([1, 2], curves, [90.0, 99.5, 30.0, 60.0])
    assert (found.above, found.below, found.count) == (2, 1, 4)
    assert found.mean == pytest.approx(2 ** ((1 + 1 + 0 + 0.5) / 4))


def test_seeds_at_the_highest_point_of_the_curve_are_bounds_and_at_the_lowest_are_none() -> None:
    found = intervals.parity([1, 2, 4], [[40.0, 80.0, 70.0]] * 2, [80.0, 40.0])
    assert (found.above, found.below) == (1, 0)


@pytest.mark.parametrize(("label", "rank", "low", "high"), [("MoS e=2", 2.5, 2.4, 2.7), ("MoS e=8", 11.0, 10.3, 11.8)])
def test_the_parity_of_the_full_study(label: str, rank: float, low: float, high: float) -> None:
    runs = pd.read_csv(ROOT / "results/capacity/micro_7b/full.csv").query("part == 'reported'")
    bits = (runs.bits_per_parameter * runs.parameters).rename("stored") * 100 / (4096 * log2(64))
    by_row = pd.concat([runs[["label", "seed"]], bits], axis=1).pivot(index="seed", columns="label", values="stored")
    curves = by_row[[f"LoRA {r}" for r in RANKS]].to_numpy().tolist()
    found = intervals.parity(RANKS, curves, by_row[label].tolist())
    assert [round(number, 1) for number in (found.mean, found.low, found.high)] == [rank, low, high]
    assert (found.above, found.below, found.count) == (0, 0, 5)


@given(st.lists(st.integers(0, 6), min_size=6, max_size=6), st.integers(0, 24))
def test_the_rank_is_the_lowest_that_stores_as_much(stored: list[int], quarters: int) -> None:
    """Against a walk along the curve in small steps."""
    target = quarters / 4
    risen = np.maximum.accumulate(stored)
    logs = np.linspace(0, 6, 6001)
    enough = np.interp(logs, np.log2(RANKS), risen) >= target - 1e-9
    expected = logs[enough.argmax()] if enough.any() else 6.0
    assert np.log2(intervals.equal_rank(RANKS, stored, target)) == pytest.approx(expected, abs=0.002)


def test_a_curve_that_falls_is_made_to_rise() -> None:
    assert intervals.equal_rank([1, 2, 4], [1.0, 3.0, 2.0], 2.0) == pytest.approx(2**0.5)


def test_parity_covers_the_true_rank() -> None:
    rng = np.random.default_rng(0)
    line = np.array([10 + 10 * np.log2(r) for r in RANKS])

    def covers() -> bool:
        shift = rng.normal(0, 3, (5, 1))  # a seed is hard for all rows: the pairing takes it out
        found = intervals.parity(
            RANKS, (line + shift + rng.normal(0, 1, (5, 6))).tolist(), (25 + shift[:, 0] + rng.normal(0, 1, 5)).tolist()
        )
        return found.low <= 2**1.5 <= found.high

    assert np.mean([covers() for _ in range(500)]) >= 0.93

"""Simulated tables with known differences: how often an interval holds the truth, and how often a mark is false.

The simulated scores are right or wrong answers: an item is solved if its ease, the method's skill and the seed's luck
add up (a probit model, whose mean is known). So seeds, items and what a seed does on an item all vary, none of them
as a normal number. `test_statistics.py` has the formula; here is what it is worth.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from scripts.table import statistics
from scripts.table.grid import Row
from scripts.table.summary import Entry, summarise

ITEMS = 200
EASE = 1.0  # standard deviation of the items
LUCK = (0.0, 0.05, 0.1, 0.2, 0.4)  # of the seeds: from no influence to ten times the error that 200 items leave
ROWS = [Row(f"row {i}", None, (f"m{i}",), "base") for i in range(6)]
COLUMNS = ["a", "b", "c"]


def answers(skill: float, luck: np.ndarray, ease: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Percent, 0 or 100, of each seed on each item: luck (seeds, 1), ease (items,) -> (seeds, items)."""
    return 100.0 * (rng.random((len(luck), len(ease))) < norm.cdf(skill + luck + ease))


def truth(skill: float, spread: float) -> float:
    """The expected percentage over all seeds and items, with luck and ease drawn anew."""
    return float(100 * norm.cdf(skill / np.sqrt(1 + spread**2 + EASE**2)))


def coverage(seeds: int, spread: float, gain: float, repeats: int) -> float:
    """The share of intervals of a difference, of known size, that hold it."""
    rng = np.random.default_rng(seeds)
    held, known = 0, truth(gain, spread) - truth(0.0, spread)
    for _ in range(repeats):
        ease = rng.normal(0, EASE, ITEMS)
        mine, theirs = (answers(skill, rng.normal(0, spread, (seeds, 1)), ease, rng) for skill in (gain, 0.0))
        low, high = statistics.estimate([mine - theirs]).interval
        held += low <= known <= high
    return held / repeats


def normal_coverage(seeds: int, ratio: float, share: float, repeats: int) -> float:
    """The same of a single score with normal errors.

    ratio: variance of the mean that comes from the seeds, over what comes from the items
    share: part of the latter that differs from seed to seed (the residual)
    """
    rng = np.random.default_rng(seeds)
    luck = np.sqrt(ratio * (1 - share + share / seeds) / ITEMS * seeds)
    held = 0
    for _ in range(repeats):
        noise = rng.normal(0, np.sqrt(share), (seeds, ITEMS))
        scores = rng.normal(0, luck, (seeds, 1)) + rng.normal(0, np.sqrt(1 - share), ITEMS) + noise
        low, high = statistics.estimate([scores]).interval
        held += low <= 0 <= high
    return held / repeats


def table(seeds: int, spread: float, skills: Sequence[float], rng: np.random.Generator) -> pd.DataFrame:
    """The summary of a table of six rows against a base of skill 0; every row has the same items."""
    ease = {column: rng.normal(0, EASE, ITEMS) for column in COLUMNS}
    index = pd.MultiIndex.from_product([["all"], range(ITEMS)], names=["task", "id"])

    def entry(name: str, skill: float) -> Entry:
        found = {c: answers(skill, rng.normal(0, spread, (seeds, 1)), ease[c], rng) for c in COLUMNS}
        scores = pd.DataFrame({column: values.mean(axis=1) for column, values in found.items()})
        items = {c: pd.concat({c: pd.DataFrame(values.T, index)}, axis=1) for c, values in found.items()}
        return Entry(name, 8, 1000, scores, items, COLUMNS)

    entries = {"base": entry("base", 0.0)} | {f"m{i}": entry(f"m{i}", skill) for i, skill in enumerate(skills)}
    return summarise(ROWS, COLUMNS, entries, set())


def marked(summary: pd.DataFrame) -> pd.Series:
    return summary.p_holm < statistics.LEVEL


@pytest.mark.parametrize("seeds", [3, 5])
def test_an_interval_holds_a_known_difference(seeds: int) -> None:
    found = [coverage(seeds, spread, gain, 100) for spread in LUCK for gain in (0.0, 0.5)]
    assert np.mean(found) >= 0.93  # 1,000 intervals; a single setting of 100 may be anywhere from 0.88 up
    assert min(found) >= 0.88


def test_items_alone_would_not_hold_it() -> None:
    """What the tables did before: with seeds that vary, intervals over items alone miss the truth most of the time."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        scores = answers(0.0, rng.normal(0, 0.4, (3, 1)), rng.normal(0, EASE, ITEMS), rng)
        low, high = statistics.estimate([scores.mean(axis=0, keepdims=True)]).interval
        held += low <= 50 <= high
    assert held < 75


def test_a_table_without_a_difference_has_few_marks_and_a_table_with_large_ones_has_them() -> None:
    rng = np.random.default_rng(1)
    false = [marked(table(5, 0.1, [0.0] * 6, rng)).any() for _ in range(4)]
    assert sum(false) <= 1
    found = table(5, 0.1, [0.0, 1.5, -1.5, 0.0, 0.0, 0.0], rng).set_index(["label", "column"])
    assert marked(found).loc[[("row 1", "avg"), ("row 2", "avg")]].all()
    assert found.difference.loc["row 1", "avg"] > 0 > found.difference.loc["row 2", "avg"]


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
def test_at_least_93_of_100_intervals_hold_a_known_difference_whatever_the_seeds_vary(seeds: int) -> None:
    for spread in LUCK:
        for gain in (0.0, 0.5, 1.5):
            assert coverage(seeds, spread, gain, 2000) >= 0.93, (spread, gain)
    for ratio in (0.0, 0.3, 1.0, 3.0, 10.0, 100.0):
        for share in (0.0, 0.3, 0.8):
            assert normal_coverage(seeds, ratio, share, 2000) >= 0.93, (ratio, share)


def p_values(seeds: int, spread: float, skills: Sequence[float], rng: np.random.Generator) -> list[float]:
    """What `summarise` tests in such a table, without the table: of each row the columns, and their average."""
    ease = [rng.normal(0, EASE, ITEMS) for _ in COLUMNS]
    base, *rows = (
        [answers(skill, rng.normal(0, spread, (seeds, 1)), own, rng) for own in ease] for skill in (0.0, *skills)
    )
    found = []
    for row in rows:
        differences = [mine - theirs for mine, theirs in zip(row, base, strict=True)]
        tested = [*([values] for values in differences), [values / len(COLUMNS) for values in differences]]
        found += [statistics.estimate(parts).p_value for parts in tested]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (3, 0.0), (3, 0.2), (5, 0.0), (5, 0.2)])
def test_at_most_one_table_in_twenty_has_a_false_mark(
    seeds: int, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four rows do not differ from the base and two do: a mark at one of the four is false (family-wise, after Holm).

    With one seed nothing can be said of seeds, so only seeds that do not vary are tried.
    """
    monkeypatch.setattr("gc.collect", int)  # statsmodels collects garbage at every correction: most of the time here
    rng, repeats = np.random.default_rng(seeds), 400
    false = 0
    for _ in range(repeats):
        adjusted = statistics.holm(p_values(seeds, spread, [0.0, 0.0, 0.0, 0.0, 0.8, -0.8], rng))
        false += bool((adjusted[: 4 * (len(COLUMNS) + 1)] < statistics.LEVEL).any())
    allowed = 0.05 + 2 * np.sqrt(0.05 * 0.95 / repeats)  # two standard errors of the simulation
    assert false / repeats <= allowed

import numpy as np
import pytest
from scipy.stats import binomtest

from scripts.table import statistics

rng = np.random.default_rng(7)


def test_strata_of_an_item_mean_is_one_array() -> None:
    values = np.array([100.0, 0.0, 50.0])
    assert statistics.score(statistics.strata(values, np.array(["a", "a", "b"]), per_task=False)) == pytest.approx(50.0)


@pytest.mark.parametrize("sizes", [(30, 12), (30, 2)], ids=["strata", "too small for strata"])
def test_strata_of_a_task_mean_add_up_to_the_mean_of_task_means(sizes: tuple[int, int]) -> None:
    values = rng.random(sum(sizes)) * 100
    tasks = np.repeat(["a", "b"], sizes)
    expected = (values[tasks == "a"].mean() + values[tasks == "b"].mean()) / 2
    parts = statistics.strata(values, tasks, per_task=True)
    assert statistics.score(parts) == pytest.approx(expected)
    assert len(parts) == (2 if min(sizes) >= statistics.MIN_STRATUM else 1)


def test_interval_agrees_with_the_normal_approximation() -> None:
    values = (rng.random(2000) < 0.4) * 100.0
    low, high = statistics.interval([values])
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.3)
    assert high == pytest.approx(values.mean() + half, abs=0.3)


def test_stratified_interval_leaves_out_the_spread_between_tasks() -> None:
    tasks = np.repeat(["easy", "hard"], 200)
    values = np.where(tasks == "easy", 100.0, 0.0)
    assert statistics.interval(statistics.strata(values, tasks, per_task=True)) == pytest.approx((50.0, 50.0))
    low, high = statistics.interval(statistics.strata(values, tasks, per_task=False))
    assert high - low > 5


def test_interval_of_one_item_is_unknown() -> None:
    assert all(np.isnan(bound) for bound in statistics.interval([np.array([100.0])]))


@pytest.mark.parametrize(("better", "worse"), [(9, 1), (30, 12), (6, 5)])
def test_p_value_of_binary_outcomes_is_that_of_the_exact_mcnemar_test(better: int, worse: int) -> None:
    differences = np.concatenate([np.full(better, 100.0), np.full(worse, -100.0), np.zeros(50)])
    exact = binomtest(better, better + worse, 0.5).pvalue
    assert statistics.p_value([differences]) == pytest.approx(exact, abs=0.03)  # of 9999 random flips


def test_p_value_weighs_tasks_as_the_score_does() -> None:
    """A gain in every item of a small task and a loss in as many of a large one is not a tie for a task mean."""
    tasks = np.repeat(["small", "large"], [20, 400])
    differences = np.zeros(420)
    differences[:15], differences[20:35] = 100.0, -100.0
    assert statistics.p_value(statistics.strata(differences, tasks, per_task=False)) > 0.8
    assert statistics.p_value(statistics.strata(differences, tasks, per_task=True)) < 0.01


def test_p_value_without_differences_is_one() -> None:
    assert statistics.p_value([np.zeros(10)]) == 1.0


def test_holm_against_a_worked_example() -> None:
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert len(statistics.holm([])) == 0


def test_spread_over_seeds() -> None:
    assert statistics.spread([1.0, 3.0]) == pytest.approx((2.0, 2**0.5))
    mean, std = statistics.spread([5.0])
    assert mean == 5.0
    assert np.isnan(std)

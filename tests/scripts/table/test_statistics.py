import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy.stats import binomtest, t, ttest_1samp

from scripts.table import statistics

rng = np.random.default_rng(7)


def test_strata_of_an_item_mean_is_one_array() -> None:
    values = np.array([[100.0, 0.0, 50.0]])
    found = statistics.estimate(statistics.strata(values, np.array(["a", "a", "b"]), per_task=False))
    assert found.mean == pytest.approx(50.0)


@pytest.mark.parametrize("sizes", [(30, 12), (30, 2)], ids=["strata", "too small for strata"])
def test_strata_of_a_task_mean_add_up_to_the_mean_of_task_means(sizes: tuple[int, int]) -> None:
    values = rng.random((3, sum(sizes))) * 100
    tasks = np.repeat(["a", "b"], sizes)
    expected = (values[:, tasks == "a"].mean() + values[:, tasks == "b"].mean()) / 2
    parts = statistics.strata(values, tasks, per_task=True)
    assert statistics.estimate(parts).mean == pytest.approx(expected)
    assert len(parts) == (2 if min(sizes) >= statistics.MIN_STRATUM else 1)


def test_one_seed_s_interval_is_the_t_interval_over_items() -> None:
    values = (rng.random((1, 50)) < 0.4) * 100.0 - 30.0
    found = statistics.estimate([values])
    expected = t.interval(0.95, 49, values.mean(), values.std(ddof=1) / np.sqrt(50))
    assert found.interval == pytest.approx(expected)
    assert found.p_value == pytest.approx(ttest_1samp(values[0], 0).pvalue)
    assert np.isnan(found.by_seed)


def test_items_that_all_agree_leave_the_t_interval_over_seeds() -> None:
    seeds = rng.normal(3, 1, 5)
    found = statistics.estimate([np.repeat(seeds[:, None], 40, axis=1)])
    assert found.interval == pytest.approx(t.interval(0.95, 4, seeds.mean(), seeds.std(ddof=1) / np.sqrt(5)))
    assert found.p_value == pytest.approx(ttest_1samp(seeds, 0).pvalue)


def test_seeds_that_all_agree_leave_the_t_interval_over_items() -> None:
    items = rng.normal(3, 1, 40)
    found = statistics.estimate([np.repeat(items[None], 5, axis=0)])
    assert found.interval == pytest.approx(t.interval(0.95, 39, items.mean(), items.std(ddof=1) / np.sqrt(40)))


def test_the_variances_are_those_of_the_crossed_model() -> None:
    """Against the mixed model of statsmodels, fitted by restricted maximum likelihood to balanced data."""
    values = rng.normal(0, 2, (6, 1)) + rng.normal(0, 3, 30) + rng.normal(0, 1, (6, 30))
    frame = pd.DataFrame([(s, i, values[s, i]) for s in range(6) for i in range(30)], columns=["seed", "item", "y"])
    parts = {"seed": "0 + C(seed)", "item": "0 + C(item)"}
    fitted = smf.mixedlm("y ~ 1", frame.assign(all=1), groups="all", vc_formula=parts).fit(reml=True)
    item, seed = fitted.vcomp  # in the order of their names
    found = statistics.estimate([values])
    assert found.residual * 30 == pytest.approx(fitted.scale, rel=0.01)
    assert found.by_seed - found.residual == pytest.approx(seed, rel=0.01)
    assert found.item * 30 == pytest.approx(item, rel=0.01)


def test_stratified_interval_leaves_out_the_spread_between_tasks() -> None:
    tasks = np.repeat(["easy", "hard"], 200)
    values = np.where(tasks == "easy", 100.0, 0.0)[None] + np.tile([-1.0, 1.0], 200)
    stratified = statistics.estimate(statistics.strata(values, tasks, per_task=True))
    half = t.ppf(0.975, 398) * np.sqrt(2 * 0.5**2 / 199)  # a task has half the weight, its items are 1 point off
    assert stratified.interval == pytest.approx((50.0 - half, 50.0 + half))
    low, high = statistics.estimate(statistics.strata(values, tasks, per_task=False)).interval
    assert high - low > 5


def test_the_interval_of_one_item_is_unknown() -> None:
    found = statistics.estimate([np.array([[100.0], [50.0]])])
    assert all(np.isnan(bound) for bound in (*found.interval, found.p_value))


@pytest.mark.parametrize("score", [0.0, 100.0, 33.3])
@pytest.mark.parametrize("seeds", [1, 3])
def test_equal_scores_tell_no_interval(score: float, seeds: int) -> None:
    found = statistics.estimate([np.full((seeds, 16), score)])
    assert found.mean == pytest.approx(score)
    assert np.isnan(found.interval).all()


def test_rows_that_differ_on_no_item_are_certainly_not_different() -> None:
    assert statistics.estimate([np.zeros((3, 16))]).p_value == 1.0


@pytest.mark.parametrize("seeds", [1, 3, 5])
@pytest.mark.parametrize("shift", [0.05, 0.3, 3.0])
def test_the_p_value_is_below_a_level_just_where_the_interval_leaves_out_0(seeds: int, shift: float) -> None:
    found = statistics.estimate([rng.normal(shift, 1, (seeds, 1)) * 0.3 + rng.normal(shift, 1, (seeds, 60))])
    for level in (0.2, 0.05, 0.001):
        outside = abs(found.mean) > found.half_width(level, seeds)
        assert outside == (found.p_value < level)


def test_more_seeds_never_widen_the_interval_and_the_count_is_the_least() -> None:
    found = statistics.estimate([rng.normal(0, 3, (3, 1)) + rng.normal(0, 5, (3, 200))])
    widths = [found.half_width(0.05, seeds) for seeds in range(2, 100)]
    assert widths == sorted(widths, reverse=True)
    for distance in (0.7, 1.0, 2.0):
        seeds = found.seeds_to_tell(distance)
        assert seeds is None or found.half_width(0.05, seeds) < distance <= found.half_width(0.05, seeds - 1)
    assert found.seeds_to_tell(0.0) is None


def test_few_differing_items_never_look_certain() -> None:
    """Four items of forty, all in favour: no test of signs goes below 1/8, however small their spread."""
    differences = np.zeros((1, 40))
    differences[0, :4] = 100.0
    assert statistics.estimate([differences]).p_value >= 1 / 8
    assert statistics.estimate([np.full((1, 4), 100.0)]).p_value == 1 / 8


@pytest.mark.parametrize(("better", "worse"), [(9, 1), (30, 12), (6, 5)])
def test_the_p_value_of_binary_outcomes_is_near_that_of_the_exact_mcnemar_test(better: int, worse: int) -> None:
    differences = np.concatenate([np.full(better, 100.0), np.full(worse, -100.0), np.zeros(50)])[None]
    exact = binomtest(better, better + worse, 0.5).pvalue
    p_value = statistics.estimate([differences]).p_value
    assert p_value == pytest.approx(exact, abs=0.25)
    assert (p_value < 0.05) == (exact < 0.05)


def test_p_value_weighs_tasks_as_the_score_does() -> None:
    """A gain in every item of a small task and a loss in as many of a large one is not a tie for a task mean."""
    tasks = np.repeat(["small", "large"], [20, 400])
    differences = np.zeros((1, 420))
    differences[0, :15], differences[0, 20:35] = 100.0, -100.0
    assert statistics.estimate(statistics.strata(differences, tasks, per_task=False)).p_value > 0.8
    assert statistics.estimate(statistics.strata(differences, tasks, per_task=True)).p_value < 0.01


def test_p_value_without_differences_is_one() -> None:
    assert statistics.estimate([np.zeros((1, 10))]).p_value == 1.0
    assert statistics.estimate([np.zeros((3, 10))]).p_value == 1.0


def test_holm_against_a_worked_example() -> None:
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert len(statistics.holm([])) == 0


def test_spread_over_seeds() -> None:
    assert statistics.spread([1.0, 3.0]) == pytest.approx((2.0, 2**0.5))
    mean, std = statistics.spread([5.0])
    assert mean == 5.0
    assert np.isnan(std)

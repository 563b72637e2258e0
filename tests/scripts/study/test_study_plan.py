"""Which runs a study has, from any set of finished ones."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from scripts.study import plan
from scripts.study.runs import Run
from scripts.study.settings import ClaimSettings, FactsSettings, OptimizerSettings, RowSettings, StudySettings


def study(**changes: Any) -> StudySettings:
    rows = [RowSettings(label=label, method="lora", rate=0.01, last=label == "c") for label in "abc"]
    usual: dict[str, Any] = {
        "name": "test",
        "targets": ["down_proj"],
        "facts": FactsSettings(count=10, first_token=0, keys=5, values=4),
        "optimizer": OptimizerSettings(steps=3, batch_size=2, warmup_ratio=0.1, max_grad_norm=1.0),
        "seeds": [1, 2],
        "search_seed": 0,
        "rate_factor": 2.0,
        "rows": rows,
        "doubled": ["a"],
        "claims": [],
        "parity": [],
    }
    return StudySettings(**(usual | changes))


def finish(study: StudySettings, bits: Callable[[Run], float]) -> tuple[dict[Run, dict[str, Any]], list[Run]]:
    """Run one at a time what is ready first; returns the results and the order."""
    results: dict[Run, dict[str, Any]] = {}
    while waiting := plan.ready(study, results):
        results[waiting[0]] = {"bits_per_parameter": bits(waiting[0])}
    return results, list(results)


def peak(best: float) -> Callable[[Run], float]:
    return lambda run: 1 / (1 + abs(run.rate - best))


@pytest.mark.parametrize("best", [0.01, 0.04, 0.0025])
def test_the_grid_grows_until_the_best_is_inside(best: float) -> None:
    given = study()
    results, _ = finish(given, peak(best))
    for row in given.rows:
        rates = plan.tried(given, row, results)
        assert plan.chosen(given, row, results) == best
        assert rates[0] < best < rates[-1]
        assert len(rates) == 3 + abs(round(math.log2(best / 0.01)))


def test_rates_that_all_diverge_end_the_search() -> None:
    given = study()
    results, _ = finish(given, lambda run: 0.0)
    assert len(plan.tried(given, given.rows[0], results)) == plan.MOST_RATES
    assert plan.chosen(given, given.rows[0], results) == plan.tried(given, given.rows[0], results)[0]


def test_a_rate_is_chosen_on_a_seed_that_is_not_reported() -> None:
    given = study()
    results, _ = finish(given, peak(0.01))
    assert {run.seed for run in plan.reported(given, given.rows[0], results)} == {1, 2}
    results = {run: {"bits_per_parameter": 100.0 * run.rate} if run.seed else result for run, result in results.items()}
    assert plan.chosen(given, given.rows[0], results) == 0.01


def test_last_rows_come_after_the_doubled_ones() -> None:
    _, order = finish(study(), peak(0.01))
    doubled = [i for i, run in enumerate(order) if run.steps == 6]
    last = [i for i, run in enumerate(order) if run.label == "c"]
    first = [i for i, run in enumerate(order) if run.label in "ab" and run.steps == 3]
    assert max(first) < min(doubled)
    assert max(doubled) < min(last)
    assert len(order) == 3 * 3 + 3 * 2 + 2


def test_seeds_are_run_in_turn_for_all_rows() -> None:
    _, order = finish(study(), peak(0.01))
    assert [(run.label, run.seed) for run in order if run.seed and run.steps == 3 and run.label in "ab"] == [
        ("a", 1),
        ("b", 1),
        ("a", 2),
        ("b", 2),
    ]


def test_what_is_finished_is_not_run_again_whatever_the_order() -> None:
    given = study()
    results, order = finish(given, peak(0.04))
    kept = {run: results[run] for run in order[::2]}
    assert not set(plan.ready(given, kept)) & set(kept)
    while waiting := plan.ready(given, kept):
        kept[waiting[-1]] = results[waiting[-1]]
    assert kept == results
    assert plan.total(given, kept) == len(order)


def test_without_a_search_the_rates_of_the_yaml_count() -> None:
    given = study(search_seed=None)
    assert {run.seed for run in plan.ready(given, {})} == {1, 2}
    assert {run.rate for run in plan.ready(given, {})} == {0.01}
    assert plan.total(given, {}) == len(plan.ready(given, {}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"doubled": ["z"]}, "capacity.rows has no row z; there are a, b, c"),
        ({"claims": [ClaimSettings(text="t", row="a", than="y")]}, "has no row y"),
        ({"rows": [RowSettings(label="a", method="lora", rate=0.1)] * 2}, "names a twice"),
        ({"parity": ["a"]}, "at least two LoRA rows"),
    ],
)
def test_rows_that_are_not_there_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        study(**changes).check_names()

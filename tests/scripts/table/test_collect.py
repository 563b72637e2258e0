"""What is read of runs on disk: the validation loss as a ratio, and the examples that its interval comes from."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from scripts.cell import runs
from scripts.table import collect, statistics
from scripts.table.summary import HELD_OUT, LOSS, strata

SETS = ["flan_v2", "cot"]
rng = np.random.default_rng(3)


@pytest.fixture
def cells(tmp_path):
    """`cells(losses)`: a run for each (set, seed) of `losses`: (loss, tokens) pairs, or None for an old run."""

    def make(losses):
        found = []
        for (dataset, seed), examples in losses.items():
            path = tmp_path / f"{dataset}-{seed}"
            path.mkdir()
            if examples is not None:
                lines = [json.dumps({"loss": loss, "tokens": tokens}) for loss, tokens in examples]
                (path / runs.HELD_OUT_LOSSES).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
            cell = SimpleNamespace(dataset=dataset, seed=seed, benchmarks=[])
            found.append(collect.Result(cell, runs.Run(path, None, {"data": {"key": "ab12"}}), []))
        return found

    return make


def examples(count=40):
    tokens = rng.integers(1, 60, count)
    return [(float(n * loss), int(n)) for n, loss in zip(tokens, rng.normal(2, 0.5, count), strict=True)]


def ratio(pairs):
    return sum(loss for loss, _ in pairs) / sum(tokens for _, tokens in pairs)


def test_the_loss_of_a_seed_is_the_mean_over_sets_of_the_loss_per_labelled_token(cells):
    first = {name: examples() for name in SETS}
    losses = {(name, seed): [(loss + seed, n) for loss, n in first[name]] for name in SETS for seed in (0, 1)}
    by_seed, items = collect.validation(cells(losses), SETS)
    for seed in (0, 1):
        assert by_seed[seed] == pytest.approx(np.mean([ratio(losses[name, seed]) for name in SETS]))
    frame = items[HELD_OUT]
    assert len(frame) == 80
    for seed in (0, 1):  # the mean over sets of the mean over examples is the same number
        assert frame[LOSS, seed].groupby(level="task").mean().mean() == pytest.approx(by_seed[seed])


def test_the_interval_is_that_of_a_ratio(cells):
    """Against a bootstrap of the ratio itself; long examples count for more, and cost less certainty than they seem."""
    pairs = np.array(examples(400))
    _, items = collect.validation(cells({("cot", 0): [tuple(map(float, p)) for p in pairs]}), ["cot"])
    low, high = statistics.estimate(strata(items, LOSS, [], set())).interval
    draws = pairs[rng.integers(0, 400, (4000, 400))].sum(axis=1)  # (resamples, 2)
    assert (low, high) == pytest.approx(np.percentile(draws[:, 0] / draws[:, 1], [2.5, 97.5]), abs=0.01)


def test_differences_of_examples_do_not_depend_on_what_is_common(cells):
    """Paired by example, what is hard for both cancels: equal losses give a difference of 0 that no item changes."""
    pairs = {(name, 0): examples() for name in SETS}
    _, items = collect.validation(cells(pairs), SETS)
    difference = items[HELD_OUT] - items[HELD_OUT]
    found = statistics.estimate(strata({HELD_OUT: difference}, LOSS, [], set()))
    assert (found.mean, found.item) == (0.0, 0.0)
    assert np.isnan(found.interval).all()  # two rows that differ nowhere do not show how far rows can differ


@pytest.mark.parametrize(
    ("missing", "seeds"), [([("cot", 1)], [0]), ([("cot", 0), ("cot", 1)], []), ([], [0, 1])], ids=str
)
def test_a_seed_without_the_loss_of_every_set_is_left_out(cells, missing, seeds):
    keys = [(name, seed) for name in SETS for seed in (0, 1)]
    by_seed, items = collect.validation(cells({key: None if key in missing else examples() for key in keys}), SETS)
    assert list(by_seed.index) == seeds
    assert bool(items) == bool(seeds)


def test_old_runs_have_none(cells):
    by_seed, items = collect.validation(cells({("cot", 0): None}), ["cot"])
    assert by_seed.empty
    assert items == {}

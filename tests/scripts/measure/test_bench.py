"""The bench on a size of no interest: its ratios are those of its steps, and each column does what it says."""

import statistics

import pytest
import torch

from scripts.measure import training as bench

TINY = bench.Size(hidden=64, batch=2, length=8, shards=4, blocks=3)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only steps advance."""
    time = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: time[0])
    return time


def test_a_drifting_machine_does_not_change_a_ratio(clock):
    """It slows down by 20% with every run; MoS takes 1.5 times as long."""
    runs = []

    def step(method, cost):
        runs.append(method)
        clock[0] += cost * 1.2 ** len(runs)

    steps = {"lora": lambda: step("lora", 0.01), "mos": lambda: step("mos", 0.015)}
    assert bench.ratio(steps).median == pytest.approx(1.5, rel=0.02)
    measured = runs[2:]  # after one of each that is not
    assert measured[:4] == ["mos", "lora", "lora", "mos"]
    assert len(measured) % 4 == 0


def test_a_long_step_is_measured_in_few_pairs_and_its_first_run_not(clock):
    runs = []

    def step():
        runs.append(1)
        clock[0] += 100 if len(runs) > 2 else 900 / len(runs)

    assert bench.ratio({"lora": step, "mos": step}).median == 1
    assert len(runs) == 2 + 2 * bench.FEWEST


@pytest.mark.parametrize(("count", "outside"), [(2, 0), (5, 0), (6, 0), (10, 1), (20, 5), (100, 39)])
def test_the_interval_of_a_median(count, outside):
    """The ranks that a table of the sign test gives for 95%: the interval leaves out `outside` values at each end."""
    ratio = bench.summary([float(i) for i in reversed(range(count))])
    assert ratio == (statistics.median(range(count)), outside, count - 1 - outside)


@pytest.mark.slow
@pytest.mark.parametrize("base", ["float32", "NF4"])
def test_every_column_is_measured(monkeypatch, tmp_path, base):
    monkeypatch.setattr(bench, "SECONDS", 0.2)
    cells = dict(zip(bench.COLUMNS, bench.measure(base, TINY, tmp_path), strict=True))
    assert all(float(cell.split()[0]) > 0 for cell in cells.values())
    assert 0.9 < float(cells["its memory"]) < 1.1  # of a process that holds little else


def test_both_methods_train_the_same_base(tmp_path):
    bench.make_base("float32", TINY, tmp_path)
    ids = bench.token_ids(TINY)
    losses = [bench.adapted(method, TINY, tmp_path).eval()(ids, labels=ids).loss for method in bench.METHODS]
    assert torch.equal(*losses)  # a new adapter adds nothing


def test_every_size_can_be_built():
    for size in bench.GRID:
        heads = size.hidden // 64
        assert heads * 64 == size.hidden
        assert size.rank - 1 <= (bench.BUDGET - 1) * size.blocks

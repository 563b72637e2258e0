"""A whole study on a tiny Llama: its runs, what determines them, and what a kill leaves."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml

from scripts.cell.parameters import trainable_parameters
from scripts.config import CONFIGS
from scripts.study import plan, produce, training
from scripts.study.facts import draw
from scripts.study.runs import Run, Store

FULL = CONFIGS / "capacity" / "full.yaml"
SHARED = ["method.r=2", "method.equivalent_rank=1", "method.private_rank=0"]
ROWS = (
    "[{label: LoRA 1, method: lora, overrides: ['method.r=1'], rate: 0.01, rank: 1},"
    f"{{label: MoS, method: mos, overrides: {SHARED}, rate: 0.01}}]"
)


@pytest.fixture
def overrides(tiny_checkpoint: Path, tmp_path: Path) -> list[str]:
    return [
        "profile=smol", "model=local", "model.name=tiny", f"model.source.path={tiny_checkpoint}",
        f"cache_dir={tmp_path / 'cache'}", f"runs_dir={tmp_path / 'runs'}", "capacity=full",
        f"capacity.rows={ROWS}", "capacity.doubled=[LoRA 1]", "capacity.claims=[]", "capacity.parity=[]",
        "capacity.seeds=[1,2]", "capacity.facts={count: 40, first_token: 10, keys: 20, values: 8}",
        "capacity.optimizer.steps=6", "capacity.optimizer.batch_size=16",
    ]  # fmt: skip


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Trains in this process, where starting another would take longer than the study; the runs, as they end."""
    from concurrent.futures import Future

    ended: list[Run] = []

    class Here:
        def __init__(self, *_: object) -> None: ...
        def __enter__(self) -> "Here":
            return self

        def __exit__(self, *_: object) -> None: ...
        def submit(self, work: object, given: list[str], run: Run) -> Future:
            done: Future = Future()
            done.set_result(work(given, run))  # type: ignore[operator]
            ended.append(run)
            return done

    monkeypatch.setattr(produce, "worker_pool", Here)
    return ended


def numbers(results: dict[Run, dict]) -> dict[Run, tuple[float, float, int]]:
    return {run: (r["recall"], r["bits_per_parameter"], r["parameters"]) for run, r in results.items()}


def test_a_whole_study_and_what_a_kill_leaves(
    overrides: list[str], here: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "MOST_RATES", 3)
    store = Store(overrides)
    results = produce.produce(store, workers=1)
    assert len(results) == plan.total(store.study, results) == len(here)
    assert all(result["provenance"]["versions"]["torch"] for result in results.values())
    lost = [run for i, run in enumerate(results) if i % 3 == 1]  # as if killed while these were trained
    for run in lost:
        store.path(run).unlink()
        store.path(run).with_name(".half.tmp").write_text("{", encoding="utf-8")
    here.clear()
    again = produce.produce(Store(overrides), workers=2)
    assert numbers(again) == numbers(results)
    assert sorted(here, key=str) == sorted(lost, key=str)
    here.clear()
    assert numbers(produce.finished(Store(overrides))) == numbers(results)
    assert not here


def test_a_run_is_named_by_what_it_is(overrides: list[str]) -> None:
    store, run = Store(overrides), Run("LoRA 1", 1, 0.01, 6)
    others = [Run("LoRA 1", 2, 0.01, 6), Run("LoRA 1", 1, 0.02, 6), Run("LoRA 1", 1, 0.01, 12), Run("MoS", 1, 0.01, 6)]
    assert len({store.path(one) for one in [run, *others]}) == 5
    assert Store([*overrides, "capacity.name=other", "workers=7"]).path(run) == store.path(run)


def test_the_seed_of_a_run_draws_its_indices(overrides: list[str]) -> None:
    store = Store(overrides)
    drawn = []
    for seed in (1, 2):
        model = training.adapted(store.config(Run("MoS", seed, 0.01, 6)))
        drawn.append({name: buffer.tolist() for name, buffer in model.named_buffers() if "mos_index" in name})
    assert drawn[0].keys() == drawn[1].keys() != set()
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize(
    "change",
    [
        "capacity.facts.count=41",
        "capacity.facts.values=9",
        "capacity.optimizer.batch_size=8",
        "capacity.optimizer.warmup_ratio=0.2",
        "capacity.targets=[q_proj]",
    ],
)
def test_a_run_is_named_by_all_that_determines_it(overrides: list[str], change: str) -> None:
    run = Run("LoRA 1", 1, 0.01, 6)
    assert Store([*overrides, change]).path(run) != Store(overrides).path(run)


def test_a_rate_at_which_it_diverges_counts_as_nothing_learned(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, run = Store(overrides), Run("LoRA 1", 1, 0.01, 6)
    monkeypatch.setattr(training, "logits", lambda model, head, keys: torch.full((len(keys), len(head)), math.nan))
    result = training.train(store.config(run), store.study, run)
    assert (result["diverged"], result["recall"], result["bits_per_parameter"]) == (True, 0.0, 0.0)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_a_rate_that_is_far_too_large_is_no_error(overrides: list[str]) -> None:
    store, run = Store(overrides), Run("MoS", 1, 1e30, 6)
    assert training.train(store.config(run), store.study, run)["bits_per_parameter"] == pytest.approx(0)


def test_facts_are_learned(overrides: list[str]) -> None:
    store, run = Store([*overrides, "capacity.targets=all-linear"]), Run("LoRA 1", 1, 0.05, 300)
    result = training.train(store.config(run), store.study, run)
    assert result["recall"] > 30  # 12.5 by chance
    assert 0 < result["bits_per_parameter"] * result["parameters"] <= 40 * 3


def test_it_is_asked_for_each_fact_alone(overrides: list[str]) -> None:
    """What `ask` sums over chunks is the same as one fact after the other through the whole model."""
    store, run = Store(overrides), Run("MoS", 1, 0.01, 6)
    model = training.adapted(store.config(run))
    facts = draw(store.study.facts, 1, model.config.vocab_size)
    entropy, recall = training.ask(model, training.value_head(model, store.study.facts), facts)
    whole = [model(input_ids=pair[None]).logits[0, -1, 10:18].double().log_softmax(0) for pair in facts.keys]
    surprises = [-found[value].item() for found, value in zip(whole, facts.values, strict=True)]
    assert entropy == pytest.approx(sum(surprises) / 40, rel=1e-5)
    hits = [found.argmax() == value for found, value in zip(whole, facts.values, strict=True)]
    assert recall == pytest.approx(100 * sum(map(int, hits)) / 40)


def test_the_rate_rises_and_falls_in_lines() -> None:
    shares = [training.rate_at(step, steps=100, warmup=0.1) for step in range(100)]
    assert shares[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert shares[10] == 1
    assert shares[55] == pytest.approx(0.5)
    assert shares[99] == pytest.approx(1 / 90)
    assert all(math.isfinite(training.rate_at(s, 1, 0.0)) for s in range(2))


def test_every_fact_is_seen_before_one_is_seen_again() -> None:
    batches = training._batches(10, 4, seed=1)
    seen = torch.cat([next(batches) for _ in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))


@pytest.fixture(scope="module")
def full() -> Store:
    return Store(["capacity=full", "profile=micro"])


@pytest.mark.parametrize("label", [row["label"] for row in yaml.safe_load(FULL.read_text(encoding="utf-8"))["rows"]])
def test_rows_of_one_budget_have_one_count(full: Store, label: str) -> None:
    """The paper's equality: MoS and its variants at e have the trainable parameters of LoRA at rank e."""
    cfg = full.config(Run(label, 0, 0.01, 1))
    budget = {"prolora": 2, "lora": cfg.method.r}.get(
        cfg.method.name.partition("_")[0], cfg.method.get("equivalent_rank")
    )
    per_rank = 8 * (192 + 64)  # blocks, and the widths of a down projection
    if budget is None:  # VeRA, and Tied LoRA on q, k and v
        assert trainable_parameters(cfg) == {"VeRA 256": 8 * (256 + 64), "Tied LoRA 280": 75456}[label]
    else:
        assert trainable_parameters(cfg) == budget * per_rank

"""From which folder an engine takes an adapter; and that MoS as it was trained gives the export's predictions."""

import json
import logging
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import mos
from eval import weights
from eval.engines import private
from scripts.cell import runs, served, training
from scripts.cell.evaluation import evaluate_runs
from tests.mos_vllm.make import save_adapter

REFUSAL = private.mos_refusal  # before a test replaces it


@pytest.fixture(autouse=True)
def vllm(monkeypatch):
    """A function that sets what vLLM is: as expected, changed (a word of what), or not installed."""

    def set_state(state):
        served._vllm_takes_mos.cache_clear()
        monkeypatch.setattr(served, "find_spec", lambda name: None if state == "missing" else object())
        monkeypatch.setattr(private, "mos_refusal", lambda: None if state in ("expected", "missing") else state)

    set_state("expected")
    yield set_state
    served._vllm_takes_mos.cache_clear()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    save_adapter(root / "mos", target_modules=["q_proj", "v_proj"])
    save_adapter(
        root / "whole", target_modules=["q_proj"], r=None, shards_per_vector=1, private_rank=0, pair_dissociation=False
    )
    mos.export_lora(root / "mos", root / "lora")
    return root


def test_vllm_takes_mos_as_it_was_trained(saved, tmp_path):
    assert served.served(saved / "mos", tmp_path / "lora", "vllm") == saved / "mos"
    assert not (tmp_path / "lora").exists()


@pytest.mark.parametrize(("kind", "engine"), [("mos", "hf"), ("lora", "vllm"), ("lora", "hf")])
def test_everything_else_is_exported_once(saved, tmp_path, kind, engine):
    for _ in range(2):
        assert served.served(saved / kind, tmp_path / "lora", engine) == tmp_path / "lora"
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text(encoding="utf-8"))["peft_type"] == "LORA"


def test_a_changed_vllm_gets_exports_and_the_reason_is_one_line(saved, tmp_path, vllm, caplog):
    vllm("vllm.lora.model_manager: activate_adapter(self, lora_id)")
    with caplog.at_level(logging.WARNING):
        for name in ("one", "other"):
            assert served.served(saved / "mos", tmp_path / name, "vllm") == tmp_path / name
    [record] = caplog.records
    assert record.getMessage() == (
        "MoS adapters are exported to LoRA, since in this vLLM vllm.lora.model_manager: "
        "activate_adapter(self, lora_id) is not as expected."
    )


def test_without_vllm_nothing_is_exported(saved, tmp_path, vllm):
    vllm("missing")
    assert served.served(saved / "mos", tmp_path / "lora", "vllm") == saved / "mos"


def as_published(folder):
    """A record in place of the weights, as `make restore` leaves it."""
    known = {"sha256": weights.key(folder), "rank": 8}
    (folder / weights.WEIGHTS).unlink()
    (folder / weights.RECORD).write_text(json.dumps(known), encoding="utf-8")


@pytest.mark.parametrize(("engine", "state"), [("hf", "expected"), ("vllm", "changed"), ("vllm", "expected")])
@pytest.mark.parametrize("kind", ["mos", "lora"])
def test_a_published_run_without_weights_is_named_as_before_and_not_exported(
    saved, tmp_path, vllm, engine, state, kind
):
    vllm(state)
    shutil.copytree(saved / kind, tmp_path / "adapter")
    key = weights.key(tmp_path / "adapter")
    as_published(tmp_path / "adapter")
    run = runs.Run(tmp_path, runs.OmegaConf.create({"method": {"config": {"r": 8}}, "seed": 0}), {})
    job = served.job(run, ["gsm8k"], engine)
    assert [weights.key(folder) for folder in job.weights] == [key]
    assert not (tmp_path / "lora").exists()
    with pytest.raises(FileNotFoundError, match=r"is a published run without weights.* no answers to gsm8k"):
        weights.require(run.path, job.adapter, "gsm8k")


@pytest.mark.parametrize("exports", [True, False])
def test_weights_that_are_missing_for_no_reason_are_named(saved, tmp_path, exports):
    shutil.copytree(saved / "mos", tmp_path / "adapter", ignore=shutil.ignore_patterns(weights.WEIGHTS))
    with pytest.raises(FileNotFoundError, match="adapter holds a config but no weights"):
        if exports:
            mos.export_lora(tmp_path / "adapter", tmp_path / "lora")
        else:
            served.served(tmp_path / "adapter", tmp_path / "lora", "hf")
    assert not (tmp_path / "lora").exists()


def test_two_evaluations_that_export_at_once_share_one_export(saved, tmp_path, monkeypatch):
    export, begun = mos.export_lora, []

    def slow(*folders):
        begun.append(folders)
        time.sleep(0.2)
        export(*folders)

    monkeypatch.setattr(mos, "export_lora", slow)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: served.served(saved / "mos", tmp_path / "new" / "lora", "hf"), range(2)))
    assert found == [tmp_path / "new" / "lora"] * 2
    assert len(begun) == 1


def test_the_installed_vllm_takes_mos():
    pytest.importorskip("vllm")
    assert REFUSAL() is None


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize(("kind", "rank"), [("mos", 8), ("whole", 16)])
def test_the_rank_is_that_of_the_export(saved, tmp_path, kind, rank, exported):
    run = runs.Run(tmp_path, runs.OmegaConf.create({"method": {"config": {"r": None}}}), {})
    shutil.copytree(saved / kind, tmp_path / "adapter")
    if exported:
        mos.export_lora(tmp_path / "adapter", tmp_path / "lora")
    assert served.rank(run) == rank


def test_nothing_on_disk_tells_no_rank(tmp_path):
    assert served.rank(runs.Run(tmp_path, runs.OmegaConf.create({"method": {"config": None}}), {})) is None
    assert served.rank(runs.Run(tmp_path, runs.OmegaConf.create({"method": {"config": {"r": 1}}}), {})) is None


@pytest.fixture
def questions(tmp_path):
    folder = tmp_path / "data" / "eval" / "gsm8k"
    folder.mkdir(parents=True)
    rows = [{"question": f"What is {i} and {i}?", "answer": f"#### {2 * i}"} for i in range(6)]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [f"data={tmp_path / 'data'}", "benchmark=[gsm8k]", "benchmark.gsm8k.shots=0"]


@pytest.mark.slow
def test_as_trained_and_exported_the_predictions_and_their_names_are_the_same(tiny, questions, tmp_path, vllm):
    pytest.importorskip("vllm")
    trained = training.train(tiny("method=mos", "method.r=3"))
    copy = shutil.copytree(trained, tmp_path / "copy")
    small = ("evaluation.max_new_tokens=16", "engine.max_model_len=256", "engine.cpu_kv_cache_gib=1")
    cfg = tiny("engine=vllm", *small, *questions)
    [native] = evaluate_runs(cfg, {trained: ["gsm8k"]})[trained]
    assert not (trained / "lora").exists()
    vllm("changed")
    [exported] = evaluate_runs(cfg, {copy: ["gsm8k"]})[copy]
    assert (copy / "lora").is_dir()
    assert native.name == exported.name
    for file in ("predictions.jsonl", "metrics.json"):
        assert sorted((native / file).read_text().splitlines()) == sorted((exported / file).read_text().splitlines())
    timings = [json.loads((folder / "timing.json").read_text()) for folder in (native, exported)]
    assert [timing["served"] for timing in timings] == ["adapter", "lora"]
    cfg.engine._target_ = "nowhere.Engine"  # it must not be needed
    assert evaluate_runs(cfg, {copy: ["gsm8k"], trained: ["gsm8k"]}) == {copy: [exported], trained: [native]}

"""From which folder an engine takes an adapter; and that MoS as it was trained gives the export's predictions."""

import json
import logging
import shutil

import pytest

import mos
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

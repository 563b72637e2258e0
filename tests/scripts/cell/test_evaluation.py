"""`scripts.evaluate` and `scripts.cell.evaluation`, with transformers on a tiny model and tiny benchmarks."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from eval import weights
from scripts.cell import base_model, runs, training
from scripts.cell.evaluation import evaluate_runs, load_benchmark, scores
from scripts.cell.served import job
from scripts.config import compose

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    gsm8k = root / "eval" / "gsm8k"
    gsm8k.mkdir(parents=True)
    rows = [{"question": f"What is {i} and {i}?", "answer": f"#### {2 * i}"} for i in range(6)]
    (gsm8k / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture
def cfg(tiny, data):
    return tiny(
        f"data={data}",
        "engine=hf",
        "limit=4",
        "benchmark=[gsm8k,mmlu]",
        "benchmark.gsm8k.shots=0",
        "evaluation.max_new_tokens=8",
    )


@pytest.fixture
def run(tiny):
    return training.train(tiny())


@pytest.fixture
def untrained(tiny_cell, tmp_path):
    """`untrained(*overrides)`: a finished run that costs no training."""
    common = [o for o in tiny_cell if not o.startswith("method")]
    return lambda *overrides: training.train(
        compose([*common, "method=vanilla_chat", f"runs_dir={tmp_path / 'runs'}", *overrides])
    )


def test_a_trained_run_is_exported_evaluated_and_not_evaluated_again(cfg, run):
    (folder,) = evaluate_runs(cfg, {run: ["gsm8k"]})[run]
    assert folder.parent == run / "eval"
    assert 0.0 <= scores(folder)["gsm8k"] <= 100.0
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["items"], metrics["engine"]["name"], metrics["engine"]["dtype"]) == (4, "hf", "float32")
    exported = run / "lora" / "adapter_model.safetensors"
    assert job(runs.load(run), ["gsm8k"], "hf").adapter == exported.parent
    before = exported.stat().st_mtime_ns, (folder / "metrics.json").stat().st_mtime_ns
    cfg.engine._target_ = "nowhere.Engine"  # it must not be needed
    assert evaluate_runs(cfg, {run: ["gsm8k"]}) == {run: [folder]}
    assert before == (exported.stat().st_mtime_ns, (folder / "metrics.json").stat().st_mtime_ns)


def test_an_evaluation_goes_to_w_and_b_once(cfg, run, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for _ in range(2):
        evaluate_runs(cfg, {run: ["gsm8k"]})
        assert len(list(run.glob("wandb/offline-run-*"))) == 1


def test_runs_on_different_base_models_are_refused(cfg, untrained, monkeypatch):
    run, other = untrained(), untrained("trainer.quantization.double_quantization=false")
    monkeypatch.setattr(base_model, "dequantized_checkpoint", None)  # it must not be made for that
    with pytest.raises(ValueError, match="must share their base model"):
        evaluate_runs(cfg, {run: ["gsm8k"], other: ["gsm8k"]})


def test_benchmarks_that_are_missing_are_named_before_the_base_is_made(cfg, untrained, monkeypatch):
    run = untrained()
    monkeypatch.setattr(base_model, "dequantized_checkpoint", None)
    with pytest.raises(FileNotFoundError, match="eval/mmlu is not a folder"):
        evaluate_runs(cfg, {run: ["gsm8k", "mmlu"]})


def test_a_published_run_is_refused_with_a_sentence_if_an_answer_is_missing(cfg, tiny):
    run = runs.run_dir(tiny())
    (run / "adapter").mkdir(parents=True)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(tiny(), resolve=True), encoding="utf-8")
    contents = {"run.json": {}, "adapter/adapter_config.json": {"peft_type": "LORA", "r": 4}}
    contents[f"adapter/{weights.RECORD}"] = {"sha256": "0" * 64, "rank": 4}
    for name, content in contents.items():
        (run / name).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="is a published run without weights, which has no answers to gsm8k"):
        evaluate_runs(cfg, {run: ["gsm8k"]})


@pytest.fixture
def sums(tmp_path):
    """`sums(*overrides)`: GSM8K with two files of one question each."""
    folder = tmp_path / "eval" / "gsm8k"
    folder.mkdir(parents=True)
    for name in ("mine", "test"):
        (folder / f"{name}.jsonl").write_text(json.dumps({"question": name, "answer": "#### 1"}), encoding="utf-8")
    return lambda *overrides: load_benchmark(
        compose([f"data={tmp_path}", "benchmark=[gsm8k,humaneval]", *overrides]), "gsm8k"
    )


def test_the_files_that_the_config_names_are_read(sums):
    (question,) = sums("benchmark.gsm8k.source.files.test=[mine.jsonl,test.jsonl]").raw.test
    assert question.question == "mine"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("benchmark.gsm8k.shots=-1", r"benchmark\.gsm8k\.shots=-1 is refused"),
        ("benchmark.gsm8k.max_new_tokens=0.5", r"benchmark\.gsm8k\.max_new_tokens=0\.5 is refused"),
        ("benchmark.gsm8k.source.files.test=[none.jsonl]", r"No none\.jsonl \(test\) in"),
    ],
)
def test_what_the_command_line_sets_is_checked_when_it_is_loaded(sums, override, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        sums(override)


def test_one_greedy_answer_is_not_counted_as_many(tmp_path):
    sampling = ("evaluation.humaneval.samples=20", "evaluation.humaneval.temperature=0")
    cfg = compose([f"data={tmp_path}", "benchmark=[humaneval]", *sampling])
    shutil.copytree(ROOT / "tests/fixtures/eval", tmp_path / "eval")
    with pytest.raises(ValueError, match=r"humaneval\.samples=20 with benchmark\.humaneval\.temperature=0"):
        load_benchmark(cfg, "humaneval")


def test_what_is_missing_is_named(cfg, run, tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a finished run; train it first"):
        evaluate_runs(cfg, {tmp_path: ["gsm8k"]})
    with pytest.raises(ValueError, match=r"Benchmark 'bbh' is not among benchmark=\[gsm8k,mmlu\]"):
        evaluate_runs(cfg, {run: ["bbh"]})
    with pytest.raises(FileNotFoundError, match="eval/mmlu is not a folder"):
        evaluate_runs(cfg, {run: ["mmlu"]})


def test_the_command_line_takes_the_benchmarks_of_the_training_set(cfg, run, data, tiny_cell):
    cache = next(override for override in tiny_cell if override.startswith("cache_dir="))
    small = ("benchmark.gsm8k.shots=0", "evaluation.max_new_tokens=8", "limit=2", "engine=hf", "profile=smol")
    command = [sys.executable, "-m", "scripts.evaluate", f"runs=[{run}]", f"data={data}", cache, *small]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "gsm8k" in done.stdout
    assert [folder.name.split("-")[0] for folder in (run / "eval").iterdir()] == ["gsm8k"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "error: runs=[] names no run"),
        (["runs=[no/where]"], "error: no/where is not a finished run; train it first"),
        (["benchmark=[gsm]"], "error: Unknown benchmark 'gsm'"),
    ],
)
def test_errors_are_one_line(overrides, message):
    command = [sys.executable, "-m", "scripts.evaluate", *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr

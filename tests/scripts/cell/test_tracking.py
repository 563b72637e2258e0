"""What W&B is told of a cell, read back from the files that it writes offline."""

import json
import os
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wandb
import yaml
from google.protobuf.timestamp_pb2 import Timestamp
from wandb.proto.wandb_internal_pb2 import Record

from eval.predictions import Store
from scripts.cell import runs, tracking, training
from scripts.config import ROOT, compose


def records(path: Path) -> list[Record]:
    """The records of a `.wandb` file: after seven bytes, chunks of at most 32 KiB in the format of LevelDB's log."""
    data, position, content, found = path.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        if (left := 2**15 - position % 2**15) < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        if position + 7 + length > len(data):
            break  # it is being written
        content += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(content))
            content = b""
    return found


def parts(path: Path) -> list[list[Record]]:
    """The records of each W&B run folder of a run directory, the oldest first."""
    return sorted(map(finished, path.glob("wandb/offline-run-*/*.wandb")), key=lambda part: began(part).ToNanoseconds())


def finished(file: Path) -> list[Record]:
    """The records of a file, once W&B's own process has written the last of them."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = records(file)
        if found and found[-1].HasField("exit"):
            return found
        time.sleep(0.05)
    raise TimeoutError(f"{file} has no last record.")


def began(part: list[Record]) -> Timestamp:
    return next(record.run.start_time for record in part if record.HasField("run"))


def logged(part: list[Record]) -> list[dict]:
    lines = [record.history.item for record in part if record.HasField("history")]
    return [{".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in line} for line in lines]


def summary(part: list[Record]) -> dict:
    items = [item for record in part if record.HasField("summary") for item in record.summary.update]
    return {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def evaluated(path: Path, scores: list[float], name: str = "gsm8k-0123", label: str = "GSM8K") -> None:
    """A result folder with an item per score."""
    folder, column = path / "eval" / name, label.lower()
    with Store(folder) as store:
        for i, score in enumerate(scores):
            row = {"id": f"gsm8k/{i}", "task": "gsm8k", "prompt": f"How many? {i}", "outputs": [f"It is {i}."]}
            store.add({**row, "predictions": [str(i)], "gold": i, "scores": {column: score}, "notes": []})
    metrics = {"scores": {column: sum(scores) / len(scores)}, "items": len(scores), "label": label}
    (folder / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def vanilla(tmp_path, tiny_cell, offline):
    """A finished run that costs no training."""
    overrides = [o for o in tiny_cell if not o.startswith("method")]
    return runs.load(training.train(compose([*overrides, "method=vanilla_chat", f"runs_dir={tmp_path}"])))


def test_a_training_is_logged_offline_and_its_evaluation_joins_it(tiny, offline):
    path = training.train(tiny("method=mos_r16", "method.r=6", "method.equivalent_rank=4"))
    evaluated(path, [100.0, 0.0])
    tracking.log_evaluation(runs.load(path))
    trained, scored = parts(path)
    for part in (trained, scored):
        (run,) = [record.run for record in part if record.HasField("run")]
        assert (run.run_id, run.project, run.run_group) == (path.name, "mos", "table2")
        assert (run.job_type, run.display_name) == ("MoS 16/32", "mos_r16-r6-cot-seed0")
        assert list(run.tags) == ["smol", "cot", "budget lora_r8"]
        assert run.resume  # so that `wandb sync` adds the second to the first
    lines = logged(trained)
    for metric in ("train/loss", "eval/loss", "train/learning_rate", "train/memory_gib", "train/examples_per_second"):
        assert [line for line in lines if metric in line], metric
    assert all(line["train/examples_per_second"] > 0 for line in lines if "train/examples_per_second" in line)
    assert summary(trained)["trainable_parameters"] == runs.load(path).info["trainable_parameters"]
    final = summary(scored)
    assert (final["score/gsm8k"], final["ablation/gsm8k"], final["items/GSM8K"]) == (50.0, 50.0, 2)
    for key in ("trainable_parameters", "train/loss", "eval/loss"):
        assert final[key] == summary(trained)[key], key


def test_predictions_are_a_table(vanilla):
    evaluated(vanilla.path, [100.0, 0.0])
    tracking.log_evaluation(vanilla)
    (file,) = vanilla.path.glob("wandb/offline-run-*/files/media/table/predictions/*.json")
    table = json.loads(file.read_text())
    assert table["columns"] == ["id", "task", "prompt", "output", "parsed", "expected", "correct", "scores"]
    assert table["data"] == [
        ["gsm8k/0", "gsm8k", "How many? 0", "It is 0.", "0", "0", True, '{"gsm8k": 100.0}'],
        ["gsm8k/1", "gsm8k", "How many? 1", "It is 1.", "1", "1", False, '{"gsm8k": 0.0}'],
    ]


def test_a_long_table_is_cut(vanilla):
    evaluated(vanilla.path, [0.0] * (2 * tracking.ROWS))
    tracking.log_evaluation(vanilla)
    (file,) = vanilla.path.glob("wandb/offline-run-*/files/media/table/predictions/*.json")
    ids = [row[0] for row in json.loads(file.read_text())["data"]]
    assert ids == [f"gsm8k/{2 * i}" for i in range(tracking.ROWS)]


def test_nothing_new_starts_nothing_and_a_new_result_takes_the_old_ones_along(vanilla, monkeypatch):
    tracking.log_evaluation(vanilla)  # not evaluated yet
    evaluated(vanilla.path, [100.0])
    tracking.log_evaluation(vanilla)
    with monkeypatch.context() as patch:
        patch.setattr(tracking, "_init", None)
        tracking.log_evaluation(vanilla)
    evaluated(vanilla.path, [0.0, 0.0], "mmlu-4567", "MMLU")
    tracking.log_evaluation(vanilla)
    sent = [
        {k: v for k, v in summary(part).items() if k.startswith(("items", "score"))} for part in parts(vanilla.path)
    ]
    first = {"score/gsm8k": 100.0, "items/GSM8K": 1}
    assert sent == [first, {**first, "score/mmlu": 0.0, "items/MMLU": 2}]


def test_a_result_that_comes_while_others_are_sent_is_sent_the_next_time(vanilla, monkeypatch):
    evaluated(vanilla.path, [100.0])
    send, sent = tracking._send, []

    def sending(run, path, ablation):
        sent.append(path.parent.name)
        if len(sent) == 1:
            evaluated(vanilla.path, [0.0, 0.0], "mmlu-4567", "MMLU")
            time.sleep(0.05)  # the receipt would be younger than the new result
        send(run, path, ablation)

    monkeypatch.setattr(tracking, "_send", sending)
    for _ in range(3):
        tracking.log_evaluation(vanilla)
    assert sent[1:] == [sent[0], "mmlu-4567"]


def test_a_vanilla_row_has_no_dataset_and_no_budget(vanilla):
    evaluated(vanilla.path, [100.0])
    tracking.log_evaluation(vanilla)
    (part,) = parts(vanilla.path)
    (run,) = [record.run for record in part if record.HasField("run")]
    assert (run.job_type, list(run.tags)) == ("Vanilla (chat)", ["smol"])
    assert "ablation/gsm8k" not in summary(part)


@pytest.mark.parametrize("variable", [{"WANDB_MODE": "disabled"}, {"RANK": "1"}])
def test_disabled_and_in_a_second_process_nothing_is_logged(vanilla, monkeypatch, variable):
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    with tracking.tracked(vanilla.cfg, vanilla.path) as tracker:
        assert not tracker.is_on
    evaluated(vanilla.path, [100.0])
    tracking.log_evaluation(vanilla)
    assert not (vanilla.path / "wandb").exists()


@pytest.mark.parametrize(
    ("overrides", "tags"),
    [
        (["method=lora_r8"], ["budget lora_r8"]),
        (["method=vera_r256"], ["budget lora_r2"]),
        (["method=prolora_r8"], ["budget lora_r2"]),
        (["method=mos", "method.equivalent_rank=3"], ["budget lora_r3"]),
    ],
)
def test_the_budget_is_that_of_a_lora(overrides, tags):
    assert tracking._subject(compose(overrides))[1:] == tags


def test_the_ablation_is_mos_and_its_variants_at_the_same_rank():
    methods = ["mos_r8", "mos_r16", "mos_minus_sp_r32", "lora_r8", "mos"]
    assert [tracking.is_ablation(compose([f"method={m}"])) for m in methods] == [False, True, True, False, False]


class Broken:
    """A W&B run that raises `error` wherever `where` says so, and takes everything else."""

    def __init__(self, where: str, error: Exception) -> None:
        self.where, self.error, self.summary, self.finished = where, error, self, False

    def _maybe(self, name: str) -> None:
        if self.where == name:
            raise self.error

    def log(self, line: dict) -> None:
        self._maybe("log")

    def update(self, values: dict) -> None:
        self._maybe("update")

    def define_metric(self, *args: object, **kwargs: object) -> None:
        self._maybe("define_metric")

    def finish(self, exit_code: int) -> None:
        self.finished = True
        self._maybe("finish")


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("init", wandb.Error("no network")),
        ("init", TypeError("Descriptors cannot be created directly")),  # of protobuf, in a broken installation
        ("define_metric", ValueError("no such metric")),
        ("log", OSError("Unable to write staging files")),
        ("update", RuntimeError()),
        ("finish", BrokenPipeError("W&B's process is gone")),
    ],
)
def test_an_error_of_w_and_b_is_one_line_and_ends_no_training(tiny, offline, monkeypatch, capsys, where, error):
    run = Broken(where, error)

    def init(**kwargs):
        if where == "init":
            raise error
        return run

    monkeypatch.setattr(wandb, "init", init)
    path = training.train(tiny("trainer.max_steps=3", "trainer.eval_steps=3"))
    assert runs.is_finished(path)
    (warning,) = re.findall("W&B: .*", capsys.readouterr().err)  # bars move the cursor to the start of a line
    assert warning.endswith(f"({str(error) or 'RuntimeError'}); the run goes on without it.")
    assert run.finished == (where != "init")


@pytest.mark.parametrize("where", ["init", "log", "update", "finish"])
def test_an_error_of_w_and_b_ends_no_evaluation_and_is_tried_again(vanilla, monkeypatch, capsys, where):
    evaluated(vanilla.path, [100.0, 0.0])
    run = Broken(where, OSError("Unable to write staging files"))
    with monkeypatch.context() as patch:
        patch.setattr(tracking, "_init", lambda *args: run._maybe("init") or run)
        tracking.log_evaluation(vanilla)
    assert capsys.readouterr().err.count("W&B: ") == 1
    assert not (vanilla.path / "wandb" / "evaluation.sent").exists()
    tracking.log_evaluation(vanilla)
    assert (vanilla.path / "wandb" / "evaluation.sent").exists()


def test_a_training_that_fails_is_a_failed_run_of_w_and_b(vanilla, monkeypatch):
    codes = []
    run = Broken("", ValueError())
    monkeypatch.setattr(run, "finish", lambda exit_code: codes.append(exit_code))
    monkeypatch.setattr(tracking, "_init", lambda *args: run)
    with pytest.raises(FloatingPointError), tracking.tracked(vanilla.cfg, vanilla.path):
        raise FloatingPointError
    with tracking.tracked(vanilla.cfg, vanilla.path):
        pass
    assert codes == [1, 0]


def test_without_a_home_a_run_is_evaluated_all_the_same(vanilla, tmp_path):
    evaluated(vanilla.path, [100.0, 0.0])
    program = (
        "import sys; from pathlib import Path; from scripts.cell import runs, tracking;"
        "tracking.log_evaluation(runs.load(Path(sys.argv[1]))); print('done')"
    )
    homeless = {**os.environ, "HOME": "/proc/none", "XDG_CACHE_HOME": "/proc/none", "WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, "-c", program, vanilla.path], cwd=ROOT, env=homeless, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert "Traceback" not in done.stderr


SWEEP = ROOT / "configs" / "wandb" / "sweep.yaml"


def test_the_sweep_runs_a_training_and_minimises_the_validation_loss():
    sweep = yaml.safe_load(SWEEP.read_text())
    assert sweep["metric"] == {"name": "eval/loss", "goal": "minimize"}
    assert sweep["command"][-3:] == ["-m", "scripts.train", "${args_no_hyphens}"]
    assert sweep["project"] == compose([]).wandb.project


def test_every_value_of_the_sweep_composes():
    parameters = yaml.safe_load(SWEEP.read_text())["parameters"]
    choices = {name: spec.get("values", [spec.get("value", spec.get("min"))]) for name, spec in parameters.items()}
    first = {name: values[0] for name, values in choices.items()}
    for name, values in choices.items():
        for value in values:
            cfg = compose([f"{key}={chosen}" for key, chosen in {**first, name: value}.items()])
            node = cfg
            for key in name.split("."):
                node = node[key]
            assert getattr(node, "name", node) == value

"""One cell in two processes of `accelerate launch` (gloo, CPU): what one process gives, and one writer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[3]
STEPS = ["trainer.max_steps=4", "trainer.logging_steps=1", "trainer.eval_steps=2", "trainer.save_steps=2"]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "-m"]


def train(processes: int, cell: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = LAUNCH if processes == 2 else [sys.executable, "-m"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*command, "scripts.train", *cell, f"runs_dir={folder}", *STEPS]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line.get("loss", line.get("eval_loss")) for line in lines if "train_loss" not in line]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "mos"])
@pytest.mark.parametrize("checkpointing", ["true", "false"])
def test_two_processes_train_what_one_trains(tiny_cell, tmp_path, method, checkpointing):
    settings = ["method.dropout=0.0", "trainer.micro_batch_size=1", f"trainer.gradient_checkpointing={checkpointing}"]
    equivalent = ["method.equivalent_rank=4"] if method == "mos" else []
    cell = [*tiny_cell, *settings, f"method={method}", *equivalent]
    for processes in (2, 1):  # the two measure the untrained adapter, the one takes their number
        done = train(processes, cell, tmp_path / str(processes))
        assert done.returncode == 0, done.stderr
    one, two = (next((tmp_path / str(n)).glob("*/*/*")) for n in (1, 2))
    assert one.name == two.name
    assert [json.loads((run / "run.json").read_text())["processes"] for run in (one, two)] == [1, 2]
    kept = [".lock", "adapter", "config.yaml", "metrics.jsonl", "run.json", "validation.jsonl"]
    assert sorted(p.name for p in two.iterdir()) == kept
    assert losses(one) == pytest.approx(losses(two), rel=1e-5)
    assert len(losses(one)) == 4 + 3
    expected, found = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (one, two))
    for name, value in expected.items():
        difference = (found[name] - value).abs().max()
        assert difference <= 1e-4 * value.abs().max(), name


@pytest.mark.slow
def test_a_batch_that_does_not_divide_is_refused_in_one_sentence(tiny_cell, tmp_path):
    done = train(2, tiny_cell, tmp_path)
    assert done.returncode != 0
    said = "error: trainer.batch_size=4 is not a multiple of trainer.micro_batch_size=4 on each of 2 processes; "
    assert done.stderr.count(f"{said}lower the second.") == done.stderr.count("error: ") > 0  # each process says it
    assert not list(tmp_path.iterdir())

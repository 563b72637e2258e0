"""A GPU that torch does not use is named, with the driver and the remedy; stand-ins play nvidia-smi and torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts.measure import machine

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """`nvidia_smi(text, code)`: a stand-in that prints `text` and ends with `code`; a device that torch misses."""

    def make(text, code=0):
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '%s\\n' {text}\nexit {code}\n", encoding="utf-8")
        (tmp_path / "nvidia-smi").chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    return make


def test_a_driver_too_old_is_named_with_the_floor(nvidia_smi):
    nvidia_smi("535.183.01 535.183.01")  # two GPUs, two lines
    assert "driver is 535.183.01," in machine.gpu_problem()
    assert "580 or newer" in machine.gpu_problem()


def test_a_torch_for_cpus_beside_a_gpu_is_named(nvidia_smi, monkeypatch):
    nvidia_smi("580.65.06")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "make setup ENGINE=vllm" in machine.gpu_problem()


def test_any_other_reason_is_left_to_torch_to_tell(nvidia_smi):
    nvidia_smi("580.65.06")
    assert "torch.cuda.init()" in machine.gpu_problem()


@pytest.mark.parametrize("answer", [("580.65.06", 9), ("'No devices were found'", 0), ("''", 0)])
def test_without_a_gpu_nothing_is_wrong(nvidia_smi, answer):
    nvidia_smi(*answer)
    assert machine.driver_version() is None
    assert machine.gpu_problem() is None


def test_without_nvidia_smi_nothing_is_wrong(nvidia_smi, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpu_problem() is None


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_hidden_gpu_is_meant(nvidia_smi, monkeypatch, hidden):
    nvidia_smi("535.183.01")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert machine.gpu_problem() is None


def test_a_gpu_in_use_is_no_problem(nvidia_smi, monkeypatch):
    nvidia_smi("535.183.01")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert machine.gpu_problem() is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch uses the GPU of this machine")
def test_the_doctor_fails_in_one_sentence(nvidia_smi):
    nvidia_smi("535.183.01")
    done = subprocess.run([sys.executable, "-m", "scripts.doctor"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "535.183.01" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_floor_stands_beside_the_pin():
    assert machine.driver_floor() == 580

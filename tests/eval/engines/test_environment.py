"""What vLLM finds when it is imported, and that nothing of it stays behind."""

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import joblib
import pytest
import torch

from eval.engines import environment, private
from eval.engines.vllm import LORA_RANKS

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without any of the variables."""
    for name in {**environment.ALWAYS, **environment.cpu_environment(1)}:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_one_process_and_nothing_compiled_by_nvcc_on_cuda_too(bare: pytest.MonkeyPatch) -> None:
    environment.set_environment(environment.ALWAYS)
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"  # nothing is left after kill -9
    assert os.environ["VLLM_USE_FLASHINFER_SAMPLER"] == "0"  # images with a driver only have no nvcc
    assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"  # CUDA does not survive a fork


def test_a_variable_that_is_set_wins(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("VLLM_USE_FLASHINFER_SAMPLER", "1")
    environment.set_environment(environment.ALWAYS)
    assert os.environ["VLLM_USE_FLASHINFER_SAMPLER"] == "1"


def test_the_variables_of_a_cpu() -> None:
    assert environment.cpu_environment(3, threads=5) == {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "TORCH_COMPILE_DISABLE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "3",
        "OMP_NUM_THREADS": "5",
    }
    assert environment.cpu_environment(3)["OMP_NUM_THREADS"] == str(joblib.cpu_count())


def test_vllm_knows_the_variables() -> None:
    """An upgrade that renames one would change nothing else that is seen."""
    envs = pytest.importorskip("vllm.envs")
    names = {**environment.ALWAYS, **environment.cpu_environment(1)}
    assert [name for name in names if name.startswith("VLLM_") and name not in envs.environment_variables] == []


def test_the_ranks_are_those_of_vllm() -> None:
    lora = pytest.importorskip("vllm.config.lora")
    assert get_args(lora.MaxLoRARanks) == LORA_RANKS


@pytest.mark.parametrize("disabled", ["0", "1"])
def test_torch_compiles_again_afterwards(bare: pytest.MonkeyPatch, disabled: str) -> None:
    before = torch._dynamo.config.disable
    bare.setenv("TORCH_COMPILE_DISABLE", disabled)
    with pytest.raises(KeyError), private.without_compiling():
        assert torch._dynamo.config.disable == (disabled == "1")
        raise KeyError
    assert torch._dynamo.config.disable == before


def test_vllms_own_lora_is_back_afterwards() -> None:
    cpu = pytest.importorskip("vllm.platforms.cpu")
    before = cpu.CpuPlatform.get_punica_wrapper()
    with pytest.raises(KeyError), private.grouped_lora():
        assert cpu.CpuPlatform.get_punica_wrapper() == "mos_vllm.lora_cpu.GroupedLoRA"
        raise KeyError
    assert cpu.CpuPlatform.get_punica_wrapper() == before


def test_choosing_a_dtype_imports_neither_engine() -> None:
    code = "import sys, eval.engines as e; e.resolve_dtype('float32'); print({'torch', 'vllm'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"

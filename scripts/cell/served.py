"""From which folder an engine takes the adapter of a run: as it was trained, or exported to a standard LoRA."""

import functools
import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from safetensors import safe_open

from data_prep.storage import read_json
from eval import weights as adapter_weights
from eval.session import Job
from scripts.cell import runs

log = logging.getLogger(__name__)


def job(run: runs.Run, benchmarks: Sequence[str], engine: str) -> Job:
    """The run as it is evaluated with `engine`; its adapter is exported if that is how the engine takes it."""
    chat, exported = run.cfg.method.get("chat", True), exported_folder(run)
    if run.adapter is None:
        return Job(run.path, None, chat, tuple(benchmarks), run.cfg.seed)
    adapter = served(run.adapter, exported, engine)
    weights = (run.adapter, exported) if exported.is_dir() else (run.adapter,)
    return Job(run.path, adapter, chat, tuple(benchmarks), run.cfg.seed, weights)


def exported_folder(run: runs.Run) -> Path:
    """Where the run's adapter is as a standard LoRA, if an engine has asked for it."""
    return run.path / "lora"


def served(adapter: Path, exported: Path, engine: str) -> Path:
    """The folder from which `engine` takes a trained adapter.

    adapter: as it was trained; MoS in vLLM is taken from here, and so is the record of a published run without weights
    exported: the adapter as a standard LoRA, made here if it is missing; all others are taken from there
    """
    if engine == "vllm" and is_mos(adapter) and _vllm_takes_mos():
        return adapter
    if exported.is_dir():
        return exported
    if adapter_weights.record(adapter):  # there is nothing to export, and nothing to ask: `eval.session` says so
        return adapter
    import mos

    with runs.lock(exported.parent):  # another evaluation may export it at the same time
        if not exported.is_dir():
            mos.export_lora(adapter, exported)
    return exported


def is_mos(adapter: Path) -> bool:
    """Whether a folder holds a MoS adapter."""
    return bool(_config(adapter)["peft_type"] == "MOS")


def rank(run: runs.Run) -> int | None:
    """The rank at which the run's adapter computes, which for pure sharing depends on the model; None: not known."""
    exported = exported_folder(run)
    if exported.is_dir():
        return int(_config(exported)["r"])
    if run.adapter is None or not run.adapter.is_dir():
        return None
    if known := adapter_weights.record(run.adapter):
        return cast(int | None, known["rank"])
    if not is_mos(run.adapter):
        return None
    with safe_open(run.adapter / adapter_weights.WEIGHTS, framework="np") as file:
        indices = [key for key in file.keys() if key.endswith(".mos_index")]  # noqa: SIM118  it is no dict
        return max(file.get_slice(key).get_shape()[1] for key in indices)  # each (2, r, l)


@functools.cache  # the reason is told once
def _vllm_takes_mos() -> bool:
    """Whether vLLM serves MoS adapters as they are saved. Without vLLM nothing is exported: the engine will refuse."""
    if find_spec("vllm") is None:
        return True
    from eval.engines import private

    if refusal := private.mos_refusal():
        log.warning("MoS adapters are exported to LoRA, since in this vLLM %s is not as expected.", refusal)
    return not refusal


def _config(folder: Path) -> Any:
    return read_json(folder / "adapter_config.json")

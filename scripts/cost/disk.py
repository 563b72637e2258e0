"""Disk space that a table still needs, by purpose and place, and the memory that converting a base model takes."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from omegaconf import DictConfig

from scripts.cell import runs
from scripts.cost import formulas
from scripts.cost.architecture import Adapter, Architecture
from scripts.cost.formulas import COMPUTE_BYTES, GIB, MASTER_BYTES
from scripts.cost.inputs import Inputs

CHECKPOINTS = 2  # of a run in training; the trainer keeps two, so that a kill while it writes one costs nothing
CONVERTING_BYTES = 3  # of memory per weight: the 16-bit model, and half of it again while a file is read or written


@dataclass(frozen=True)
class Need:
    """Bytes that are still to be written into a folder."""

    purpose: str
    folder: Path
    bytes: float

    def line(self) -> dict[str, object]:
        """The line of the plan, in GiB."""
        return {"purpose": self.purpose, "GiB": self.bytes / GIB, "folder": str(self.folder)}


def disk(inputs: Inputs, cache_dir: Path) -> list[Need]:
    """What the cells of a plan still write. Data and predictions are left out: they stay below 5 GiB."""
    cfg, folder = inputs.cfg, Path(inputs.cfg.runs_dir)
    cells = [(cell, inputs.adapters[cell.method]) for cell in inputs.cells if cell.method in inputs.adapters]
    untrained = [added for cell, added in cells if not runs.is_finished(cell.path)]
    unexported = [
        added for cell, added in cells if is_exported(inputs.methods[cell.method]) and not (cell.path / "lora").is_dir()
    ]
    largest = sorted(map(checkpoint_bytes, untrained), reverse=True)[: cfg.workers]
    return [
        *_hub_copy(inputs),
        Need("converted models", cache_dir / "models", _missing_conversions(inputs, cache_dir)),
        Need("checkpoints while training", folder, CHECKPOINTS * sum(largest)),
        Need("adapters", folder, sum(map(adapter_bytes, untrained))),
        Need("adapters as LoRA", folder, sum(map(export_bytes, unexported))),
    ]


def is_exported(cfg: DictConfig) -> bool:
    """Whether the adapter of a method is written as a LoRA too; a vLLM as expected takes MoS as it was trained."""
    return cfg.engine.name != "vllm" or cfg.method.config["_target_"] != "mos.MosConfig"


def converted_bytes(model: Architecture, double_quantization: bool) -> dict[str, float]:
    """The three forms of a base model: as published and dequantized in 16 bits, and with 4-bit linear layers."""
    whole = COMPUTE_BYTES * model.weights
    quantized = formulas.quantized_bytes(model, double_quantization) + COMPUTE_BYTES * model.other_weights
    return {"published": whole, "4bit": quantized, "dequantized": whole}


def adapter_bytes(adapter: Adapter) -> float:
    """A saved adapter in float32; VeRA's holds its frozen matrices, too."""
    return MASTER_BYTES * (adapter.trainable + adapter.frozen)


def checkpoint_bytes(adapter: Adapter) -> float:
    """A saved adapter with both Adam moments."""
    return adapter_bytes(adapter) + 2 * MASTER_BYTES * adapter.trainable


def export_bytes(adapter: Adapter) -> float:
    """The adapter as the LoRA that the engine serves, in float32: shared parameters are written out for each layer."""
    return MASTER_BYTES * adapter.rank * adapter.width


def converting_bytes(model: Architecture) -> float:
    """Memory, not of the GPU, that converting a base model takes. For LLaMA2-13B some 40 GB were measured."""
    return CONVERTING_BYTES * model.weights


def shortages(needs: Sequence[Need]) -> Iterator[str]:
    """A sentence for each disk that has less room than is needed on it."""
    by_disk = sorted(needs, key=lambda need: _existing(need.folder).stat().st_dev)
    for _, group in groupby(by_disk, key=lambda need: _existing(need.folder).stat().st_dev):
        on_it = [need for need in group if need.bytes]
        needed = sum(need.bytes for need in on_it)
        free = shutil.disk_usage(_existing(on_it[0].folder)).free if on_it else 0
        if needed > free:
            folders = ", ".join(dict.fromkeys(str(need.folder) for need in on_it))
            yield (
                f"The disk of {folders} has {free / GIB:.0f} GiB free, but {needed / GIB:.0f} are needed. Free some, "
                "or choose other places: HF_HOME for copies from the hub, cache_dir=... and runs_dir=... for the rest."
            )


def _hub_copy(inputs: Inputs) -> Iterator[Need]:
    source = inputs.cfg.model.source
    if source.kind != "hub":
        return
    from huggingface_hub import constants, try_to_load_from_cache

    found = try_to_load_from_cache(source.repo, "config.json", revision=source.revision)
    there = isinstance(found, str) and any(Path(found).parent.glob("*.safetensors"))
    size = 0.0 if there else COMPUTE_BYTES * inputs.model.weights
    yield Need("copies from the hub (HF_HOME)", Path(constants.HF_HUB_CACHE), size)


def _missing_conversions(inputs: Inputs, cache_dir: Path) -> float:
    from scripts.cell.base_model import folders

    cfg = inputs.cfg
    sizes = converted_bytes(inputs.model, cfg.trainer.quantization.double_quantization)
    places = folders(cfg.model, cfg.trainer, cache_dir)
    return sum(size for form, size in sizes.items() if not places[form].is_dir())


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in [folder.resolve(), *folder.resolve().parents] if path.is_dir())

"""What a table will cost before anything runs: memory, time and disk of every cell."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from scripts.cell import runs
from scripts.cost import formulas
from scripts.cost.borrowed import borrowed
from scripts.cost.cautions import cautions
from scripts.cost.disk import disk
from scripts.cost.formulas import GIB
from scripts.cost.gpu import SHARE_FOR_VLLM, fits
from scripts.cost.inputs import Inputs, gather
from scripts.table import grid


@dataclass(frozen=True)
class Plan:
    """The tables that the plan prints."""

    memory: pd.DataFrame  # a line per method, GiB
    evaluation: pd.DataFrame  # a line per benchmark
    cells: pd.DataFrame  # a line per cell, hours
    disk: pd.DataFrame  # a line per purpose, GiB
    weights: float  # GiB of the 16-bit model
    cautions: list[str]  # what will not work, or only just


def plan(cfg: DictConfig, overrides: Sequence[str]) -> Plan:
    """Memory, time and disk of every cell of one table. Nothing is downloaded or trained, and no file is written.

    overrides: as for `grid.cells`. Raises ValueError for a GPU, a model or a method that cannot be.
    """
    with borrowed(Path(cfg.cache_dir)) as cache:
        changed = cfg.copy()
        changed.cache_dir = str(cache)
        inputs = gather(changed, [*overrides, f"cache_dir={cache}"])
    needs = disk(inputs, Path(cfg.cache_dir))
    return Plan(
        memory=pd.DataFrame([_memory(name, inputs) for name in inputs.adapters]),
        evaluation=pd.DataFrame([_evaluation(name, inputs) for name in inputs.workloads]),
        cells=pd.DataFrame([_cell(cell, inputs) for cell in inputs.cells]),
        disk=pd.DataFrame([need.line() for need in needs]),
        weights=formulas.evaluation_weights(inputs.model, None) / GIB,
        cautions=cautions(inputs, needs),
    )


def _memory(method: str, inputs: Inputs) -> dict[str, Any]:
    """Peak memory of training, by purpose, and the GPUs on which it fits."""
    memory = inputs.memory(method)
    parts = {part: value / GIB for part, value in asdict(memory).items()} | {"peak": memory.peak / GIB}
    on_gpus = {gpu.name: "fits" if fits(memory.peak, gpu) else "DOES NOT FIT" for gpu in inputs.gpus}
    return {"method": method, "params": inputs.adapters[method].trainable} | parts | on_gpus


def _evaluation(benchmark: str, inputs: Inputs) -> dict[str, Any]:
    """How much one sequence's key-value cache takes, and how many fit beside the 16-bit model at once."""
    work = inputs.workloads[benchmark]
    one = formulas.kv_bytes(inputs.model, work.longest + work.new)
    line = {"benchmark": benchmark} | asdict(work) | {"KV GiB per sequence": one / GIB}
    for gpu in inputs.gpus:
        room = SHARE_FOR_VLLM * gpu.memory_gib * GIB - formulas.evaluation_weights(inputs.model, None)
        line[f"{gpu.name} sequences"] = max(0, math.floor(room / one))
    return line


def _cell(cell: grid.Cell, inputs: Inputs) -> dict[str, Any]:
    """Hours of training and of evaluation, and whether the run is there already."""
    training, (prefill, decode) = _training_flops(cell, inputs), _evaluation_flops(cell, inputs)
    line: dict[str, Any] = {"method": cell.method, "dataset": cell.dataset or "-", "seed": cell.seed}
    line["state"] = "trained" if runs.is_finished(cell.path) else "missing"
    for gpu in inputs.gpus:
        line[f"{gpu.name} training h"] = gpu.hours(training=training)
        line[f"{gpu.name} evaluation h"] = gpu.hours(prefill=prefill, decode=decode)
    return line


def _training_flops(cell: grid.Cell, inputs: Inputs) -> float:
    """FLOPs of the whole training; 0 for a vanilla row."""
    if cell.method not in inputs.adapters or cell.dataset is None:
        return 0.0
    trainer, length = inputs.methods[cell.method].trainer, inputs.lengths[cell.dataset]
    return formulas.training_flops(
        inputs.model,
        inputs.adapters[cell.method],
        tokens=round(trainer.max_steps * trainer.batch_size * length),
        length=round(length),
        checkpointing=trainer.gradient_checkpointing,
    )


def _evaluation_flops(cell: grid.Cell, inputs: Inputs) -> tuple[float, float]:
    """FLOPs of reading all prompts and of writing all answers; at full length, without prefix cache: upper bounds."""
    prefill, decode = 0.0, 0.0
    for name in cell.benchmarks:
        work = inputs.workloads[name]
        added = inputs.adapters.get(cell.method)
        read, written = formulas.generation_flops(inputs.model, added, prompt=work.prompt, new=work.new)
        prefill += work.items * read
        decode += work.items * work.samples * written
    return prefill, decode

"""What a table will cost before anything runs: memory and time of every cell."""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from scripts.cell import runs
from scripts.config import compose
from scripts.cost import formulas as costs
from scripts.cost.formulas import GIB, Adapter, Architecture
from scripts.cost.gpu import Gpu
from scripts.cost.parameters import trainable_parameters
from scripts.cost.workload import Workload, load_tokenizer, mean_length, workload
from scripts.table import grid

log = logging.getLogger(__name__)

RESERVE_GIB = 1.0  # CUDA context and fragmentation
SHARE_FOR_VLLM = 0.9  # its default share of the GPU's memory


def adapter(cfg: DictConfig) -> Adapter | None:
    """The adapter of `cfg.method`, its parameters counted on the meta device; None for a vanilla row."""
    if cfg.method.config is None:
        return None
    model = Architecture.of(cfg.model.architecture)
    targets = tuple(cfg.method.config.get("target_modules") or model.linears)
    rank = cfg.method.r or cfg.method.equivalent_rank * model.blocks  # null: the whole pool
    frozen = costs.vera_adapter(model, rank).frozen if "Vera" in cfg.method.config._target_ else 0
    return Adapter(trainable_parameters(cfg), rank, targets, frozen)


def training_memory(cfg: DictConfig, added: Adapter, checkpointing: bool | None = None) -> costs.Memory:
    """Memory of a training step of the longest micro-batch."""
    trainer = cfg.trainer
    return costs.training_memory(
        Architecture.of(cfg.model.architecture),
        added,
        batch=trainer.micro_batch_size,
        length=trainer.max_length,
        checkpointing=trainer.gradient_checkpointing if checkpointing is None else checkpointing,
        double_quantization=trainer.quantization.double_quantization,
    )


def evaluation_flops(model: Architecture, added: Adapter | None, work: Workload) -> tuple[float, float]:
    """FLOPs of reading and of writing for a whole benchmark; answers of full length, no prefix cache: upper bounds."""
    prefill, decode = costs.generation_flops(model, added, prompt=work.prompt, new=work.new)
    return work.items * prefill, work.items * work.samples * decode


@dataclass(frozen=True)
class Plan:
    """The tables that the plan prints."""

    memory: pd.DataFrame  # a line per method, GiB
    evaluation: pd.DataFrame  # a line per benchmark
    cells: pd.DataFrame  # a line per cell, hours
    warnings: list[str]


def plan(cfg: DictConfig, overrides: Sequence[str]) -> Plan:
    """Memory and time of every cell of one table. `overrides` as for `grid.cells`."""
    gpus = [Gpu.of(str(text)) for text in cfg.gpus]
    cells = grid.cells(cfg, overrides)
    methods = {cell.method: compose([*overrides, f"method={cell.method}"]) for cell in cells}
    adapters = {name: adapter(own) for name, own in methods.items()}
    tokenizer = load_tokenizer(cfg)
    works = {
        name: workload(cfg, name, tokenizer) for name in dict.fromkeys(b for cell in cells for b in cell.benchmarks)
    }
    lengths = {
        name: mean_length(cfg, compose([*overrides, f"dataset={name}"]).dataset, tokenizer)
        for name in dict.fromkeys(cell.dataset for cell in cells if cell.dataset)
    }
    memories = {name: training_memory(methods[name], added) for name, added in adapters.items() if added}
    return Plan(
        memory=_memory_frame(adapters, memories, gpus),
        evaluation=_evaluation_frame(Architecture.of(cfg.model.architecture), works, gpus),
        cells=pd.DataFrame([_cell(cell, methods[cell.method], adapters, works, lengths, gpus) for cell in cells]),
        warnings=_warnings(methods, memories, gpus) + _vera_warning(methods, adapters, gpus),
    )


def _cell(
    cell: grid.Cell,
    cfg: DictConfig,
    adapters: dict[str, Adapter | None],
    works: dict[str, Workload],
    lengths: dict[str, float],
    gpus: Sequence[Gpu],
) -> dict[str, Any]:
    model, added, trainer = Architecture.of(cfg.model.architecture), adapters[cell.method], cfg.trainer
    training = 0.0
    if added is not None and cell.dataset is not None:
        length = lengths[cell.dataset]
        tokens = round(trainer.max_steps * trainer.batch_size * length)
        options = {"length": round(length), "checkpointing": trainer.gradient_checkpointing}
        training = costs.training_flops(model, added, tokens=tokens, **options)
    flops = [evaluation_flops(model, added, works[name]) for name in cell.benchmarks]
    prefill, decode = (sum(kind) for kind in zip(*flops, strict=True))
    line = {"method": cell.method, "dataset": cell.dataset or "-", "seed": cell.seed}
    line["state"] = "trained" if runs.is_finished(cell.path) else "missing"
    for gpu in gpus:
        line[f"{gpu.name} training h"] = gpu.hours(training=training)
        line[f"{gpu.name} evaluation h"] = gpu.hours(prefill=prefill, decode=decode)
    return line


def _memory_frame(
    adapters: dict[str, Adapter | None], memories: dict[str, costs.Memory], gpus: Sequence[Gpu]
) -> pd.DataFrame:
    lines = []
    for name, memory in memories.items():
        parts = {part: value / GIB for part, value in asdict(memory).items()}
        fits = {gpu.name: "fits" if _fits(memory, gpu) else "DOES NOT FIT" for gpu in gpus}
        lines.append({"method": name, "params": adapters[name].trainable} | parts | {"peak": memory.peak / GIB} | fits)  # type: ignore[union-attr]
    return pd.DataFrame(lines)


def _evaluation_frame(model: Architecture, works: dict[str, Workload], gpus: Sequence[Gpu]) -> pd.DataFrame:
    """How much one sequence's key-value cache takes, and how many fit beside the 16-bit model at once."""
    lines = []
    for name, work in works.items():
        one = costs.kv_bytes(model, work.longest + work.new)
        line = {"benchmark": name} | asdict(work) | {"KV GiB per sequence": one / GIB}
        for gpu in gpus:
            room = SHARE_FOR_VLLM * gpu.memory_gib * GIB - costs.evaluation_weights(model, None)
            line[f"{gpu.name} sequences"] = max(0, math.floor(room / one))
        lines.append(line)
    return pd.DataFrame(lines)


def _fits(memory: costs.Memory, gpu: Gpu) -> bool:
    return memory.peak / GIB + RESERVE_GIB <= gpu.memory_gib


def _warnings(methods: dict[str, DictConfig], memories: dict[str, costs.Memory], gpus: Sequence[Gpu]) -> list[str]:
    return [
        f"{name} needs {memory.peak / GIB:.1f} GiB to train and does not fit on {gpu.name} ({gpu.memory_gib} GiB less "
        f"{RESERVE_GIB} reserve): lower trainer.micro_batch_size (now {methods[name].trainer.micro_batch_size})."
        for name, memory in memories.items()
        for gpu in gpus
        if not _fits(memory, gpu)
    ]


def _vera_warning(
    methods: dict[str, DictConfig], adapters: dict[str, Adapter | None], gpus: Sequence[Gpu]
) -> list[str]:
    """The paper's own case: VeRA at the rank that matches the budget of LoRA 2 (Sec. 4.2 reports out of memory)."""
    if "vera_r256" not in methods or adapters.get("lora_r2") is None:
        return []
    cfg, budget = methods["vera_r256"], adapters["lora_r2"].trainable  # type: ignore[union-attr]
    model = Architecture.of(cfg.model.architecture)
    rank = costs.vera_rank(model, budget)
    matched = costs.vera_adapter(model, rank)
    lines = [f"VeRA on the budget of LoRA 2 ({budget:,} parameters) needs rank {rank:,}; the paper ran out of memory:"]
    for checkpointing in (True, False):
        memory = training_memory(cfg, matched, checkpointing)
        fits = ", ".join(f"{gpu.name} {'fits' if _fits(memory, gpu) else 'does NOT fit'}" for gpu in gpus)
        lines.append(f"  {'with' if checkpointing else 'without'} checkpointing {memory.peak / GIB:.1f} GiB: {fits}")
    return ["\n".join(lines)]

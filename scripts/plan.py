"""What a table will cost before anything runs: memory and time of every cell, from counts and stated assumptions.

python -m scripts.plan table=table2 profile=paper 'gpus=[a100_40g,mine:24:165]'
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from scripts import costs, grid, runs
from scripts.costs import GIB, Adapter, Architecture
from scripts.errors import CONFIGS, entry_point
from scripts.params import trainable_parameters

log = logging.getLogger(__name__)

RESERVE_GIB = 1.0  # CUDA context and fragmentation
SHARE_FOR_VLLM = 0.9  # its default share of the GPU's memory
STAND_IN_TOKENIZER = "smollm2_135m"  # where the model's own cannot be had; installed by `make setup`
PUBLISHED = {  # items, and mean and longest prompt in tokens of SmolLM2's tokenizer (chat, variant authors)
    "mmlu": (14_042, 127, 631),
    "bbh": (6_511, 445, 1_300),
    "gsm8k": (1_319, 822, 912),
    "tydiqa": (5_077, 922, 1_324),
    "humaneval": (164, 307, 818),
}


@dataclass(frozen=True)
class Gpu:
    """A GPU: memory in GiB, peak bf16 TFLOPs, and the shares of the peak that are assumed to be reached."""

    name: str
    memory_gib: float
    tflops: float
    training: float
    prefill: float
    decode: float

    @classmethod
    def of(cls, text: str) -> "Gpu":
        """A name from configs/gpu, or `name:GiB:TFLOPs` (efficiencies as for the A100). Raises ValueError otherwise."""
        name, *numbers = text.split(":")
        known = grid.names("gpu")
        if not numbers and name not in known:
            raise ValueError(f"Unknown GPU '{text}'; choose one of {', '.join(known)}, or give name:GiB:TFLOPs.")
        spec = OmegaConf.load(CONFIGS / "gpu" / f"{'a100_40g' if numbers else name}.yaml")
        if not numbers:
            return cls(spec.name, spec.memory_gib, spec.tflops, **spec.efficiency)
        try:
            memory, tflops = map(float, numbers)
        except ValueError:
            raise ValueError(f"GPU '{text}' is not name:GiB:TFLOPs, e.g. rtx4090:24:165.") from None
        return cls(name, memory, tflops, **spec.efficiency)

    def hours(self, *, training: float = 0.0, prefill: float = 0.0, decode: float = 0.0) -> float:
        """Hours for so many FLOPs of each kind."""
        seconds = training / self.training + prefill / self.prefill + decode / self.decode
        return seconds / (self.tflops * 1e12) / 3600


@dataclass(frozen=True)
class Workload:
    """What a benchmark asks of a model: items, tokens per prompt (mean and longest), tokens and samples per answer."""

    items: int
    prompt: float
    longest: int
    new: int
    samples: int


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


def mean_length(cfg: DictConfig, dataset: DictConfig, tokenizer: Any) -> float:
    """Mean tokens of the prepared examples of a training set; without its data, the cut-off: an upper bound."""
    from data_prep.prepare import prepare

    limit = float(cfg.trainer.max_length)
    if tokenizer is None:
        return limit
    options = {
        "max_length": cfg.trainer.max_length,
        "validation_size": cfg.trainer.validation_size,
        "cache_dir": Path(cfg.cache_dir),
    }
    try:
        report = prepare(dataset, tokenizer, data=Path(cfg.data), **options).report
    except FileNotFoundError as error:
        log.warning("%s: every example counts with %.0f tokens. %s", dataset.name, limit, error)
        return limit
    return float(report["tokens"] / (report["train"] + report["validation"]))


def workload(cfg: DictConfig, name: str, tokenizer: Any) -> Workload:
    """A benchmark's real prompts where the data is there, else its published size and typical lengths."""
    config = cfg.benchmark[name]
    new = 0 if config.get("letters") else config.max_new_tokens
    samples = config.get("samples", 1)
    if tokenizer is not None:
        try:
            return Workload(*_prompts(cfg, name, tokenizer), new, samples)
        except FileNotFoundError as error:
            log.warning("%s: its published size counts. %s", name, error)
    items, prompt, longest = PUBLISHED[name]
    return Workload(min(items, cfg.limit or items), prompt, longest, new, samples)


def _prompts(cfg: DictConfig, name: str, tokenizer: Any) -> tuple[int, float, int]:
    from eval import benchmarks
    from eval.session import chosen_items
    from scripts.evaluation import load_benchmark

    benchmark = load_benchmark(cfg, name)
    settings = benchmarks.settings(benchmark.config, cfg.evaluation.variant, chat=True)
    items = chosen_items(benchmark, tokenizer, settings, cfg.limit)
    lengths = [len(ids) for ids in tokenizer([item.prompt for item in items])["input_ids"]]
    return len(items), fmean(lengths), max(lengths)


def evaluation_flops(model: Architecture, added: Adapter | None, work: Workload) -> tuple[float, float]:
    """FLOPs of reading and of writing for a whole benchmark; answers of full length, no prefix cache: upper bounds."""
    prefill, decode = costs.generation_flops(model, added, prompt=work.prompt, new=work.new)
    return work.items * prefill, work.items * work.samples * decode


def load_tokenizer(cfg: DictConfig) -> Any:
    """The model's tokenizer, or a stand-in where a hub model's is not on this machine; None without data.

    A plan downloads nothing.
    """
    if cfg.data is None:
        return None
    from scripts import base_model

    if cfg.model.source.kind == "hub":
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(
                cfg.model.source.repo, revision=cfg.model.source.revision, local_files_only=True
            )
        except OSError:
            log.warning(
                "The tokenizer of %s is not on this machine; lengths are %s's.", cfg.model.name, STAND_IN_TOKENIZER
            )
            stand_in = grid.compose([f"model={STAND_IN_TOKENIZER}"]).model
            return base_model.load_tokenizer(stand_in, cfg.cache_dir)
    return base_model.load_tokenizer(cfg.model, cfg.cache_dir)


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
    methods = {cell.method: grid.compose([*overrides, f"method={cell.method}"]) for cell in cells}
    adapters = {name: adapter(own) for name, own in methods.items()}
    tokenizer = load_tokenizer(cfg)
    works = {
        name: workload(cfg, name, tokenizer) for name in dict.fromkeys(b for cell in cells for b in cell.benchmarks)
    }
    lengths = {
        name: mean_length(cfg, grid.compose([*overrides, f"dataset={name}"]).dataset, tokenizer)
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


def render(cfg: DictConfig, found: Plan) -> str:
    """The plan as text."""
    pd.options.display.width = 250
    pd.options.display.max_columns = 40
    gpus, model = [Gpu.of(str(text)) for text in cfg.gpus], Architecture.of(cfg.model.architecture)
    parts = [
        f"{cfg.table.title}: plan for profile {cfg.profile}, {cfg.model.name}",
        "Training memory, GiB (peak: what has to fit at once)",
        found.memory.to_string(index=False, float_format="{:.2f}".format),
        f"Evaluation on the 16-bit model ({costs.evaluation_weights(model, None) / GIB:.1f} GiB)",
        found.evaluation.to_string(index=False, float_format="{:.2f}".format),
        "Cells",
        found.cells.to_string(index=False, float_format="{:.2f}".format),
        _totals(found.cells, gpus),
        "Assumed shares of the peak rate: "
        + "; ".join(f"{g.name} training {g.training}, prefill {g.prefill}, decode {g.decode}" for g in gpus)
        + ". Answers count at full length and prompts without prefix cache.",
        "Lengths: "
        + ("of the data" if cfg.data else "published sizes, every training example as long as allowed")
        + ".",
        *(f"WARNING: {warning}" for warning in found.warnings),
    ]
    return "\n\n".join(parts)


def _totals(cells: pd.DataFrame, gpus: Sequence[Gpu]) -> str:
    lines = []
    for gpu in gpus:
        training, evaluation = f"{gpu.name} training h", f"{gpu.name} evaluation h"
        left = cells.loc[cells.state == "missing", training].sum()
        hours = cells[training].sum() + cells[evaluation].sum()
        lines.append(
            f"Total on one {gpu.name}: {len(cells)} cells, {cells[training].sum():.0f} h of training "
            f"({left:.0f} h still missing) and {cells[evaluation].sum():.0f} h of evaluation, {hours / 24:.1f} GPU-days"
        )
    return "\n".join(lines)


@entry_point
def main(cfg: DictConfig) -> None:
    overrides = grid.common(cfg)
    cfg = grid.compose(overrides)
    print(render(cfg, plan(cfg, overrides)))


if __name__ == "__main__":
    main()

"""Untrained adapters, through export, engine and scoring: the path that trained ones will take."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from peft import get_peft_model

import mos
from eval.engines import resolve_dtype
from eval.session import Conditions, Job, evaluate
from scripts.cell import base_model
from scripts.cell.adapter import adapter_config
from scripts.cell.evaluation import load_benchmark
from scripts.table.grid import shown_benchmarks


def answer(cfg: DictConfig, methods: Sequence[DictConfig], folder: Path, items: int) -> int:
    """Evaluate an untrained adapter of each method on `items` items of each benchmark; returns how many were scored.

    methods: the config of a cell of each method;  folder: for adapters and predictions, to be removed afterwards
    """
    names = shown_benchmarks(cfg)
    jobs = [
        Job(folder / own.method.name, adapter, own.method.get("chat", True), tuple(names))
        for own, adapter in zip(methods, save_untrained(cfg, methods, folder), strict=True)
    ]
    checkpoint = base_model.dequantized_checkpoint(cfg.model, cfg.trainer, cfg.cache_dir)
    engine = {"name": cfg.engine.name, "dtype": resolve_dtype(cfg.engine.dtype), "context": cfg.engine.max_model_len}
    adapters = [job.adapter for job in jobs if job.adapter]
    folders = evaluate(
        jobs,
        {name: load_benchmark(cfg, name) for name in names},
        Conditions(checkpoint.name, engine, cfg.evaluation.variant, limit=items),
        base_model.load_tokenizer(cfg.model, cfg.cache_dir),
        partial(instantiate, cfg.engine, model=checkpoint, adapters=adapters),
    )
    return items * len(folders)


def save_untrained(cfg: DictConfig, methods: Sequence[DictConfig], folder: Path) -> list[Path | None]:
    """Save a fresh adapter of each method and export it; returns the exports, None for a vanilla row.

    The 4-bit base is loaded once: each adapter is added to it, saved, and taken off again.
    """
    base: Any = None
    exported: list[Path | None] = []
    for own in methods:
        if own.method.config is None:
            exported.append(None)
            continue
        base = base or base_model.load_quantized(cfg.model, cfg.trainer, cfg.cache_dir)
        model = get_peft_model(base, adapter_config(own.method, base))
        saved = folder / "adapters" / own.method.name
        model.save_pretrained(str(saved), save_embedding_layers=False)
        base = model.unload()
        base.peft_config = {}
        mos.export_lora(saved, folder / "lora" / own.method.name)
        exported.append(folder / "lora" / own.method.name)
    return exported

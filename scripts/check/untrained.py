"""Untrained adapters, through export (or none), engine and scoring: the path that trained ones will take."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from peft import get_peft_model

from eval.engines import resolve_dtype
from eval.session import Benchmark, Conditions, Job, evaluate
from scripts.cell import base_model
from scripts.cell.adapter import adapter_config
from scripts.cell.evaluation import load_benchmark
from scripts.cell.served import served
from scripts.table.grid import shown_benchmarks

TOKENS = 16  # of an answer, at most


def answer(cfg: DictConfig, methods: Sequence[DictConfig], folder: Path, items: int) -> int:
    """Evaluate the adapters of `save_untrained` on `items` items of each benchmark; returns how many were scored.

    methods: the config of a cell of each method;  folder: as for `save_untrained`; predictions come there, too
    Answers are short: it is the path that is tried.
    """
    names = shown_benchmarks(cfg)
    jobs = [
        Job(folder / own.method.name, _served(own, folder), own.method.get("chat", True), tuple(names))
        for own in methods
    ]
    checkpoint = base_model.dequantized_checkpoint(cfg.model, cfg.trainer, cfg.cache_dir)
    engine = {"name": cfg.engine.name, "dtype": resolve_dtype(cfg.engine.dtype), "context": cfg.engine.max_model_len}
    adapters = [job.adapter for job in jobs if job.adapter]
    folders = evaluate(
        jobs,
        {name: _brief(load_benchmark(cfg, name)) for name in names},
        Conditions(checkpoint.name, engine, cfg.evaluation.variant, limit=items),
        base_model.load_tokenizer(cfg.model, cfg.cache_dir),
        partial(instantiate, cfg.engine, model=checkpoint, adapters=adapters),
    )
    return items * len(folders)


def save_untrained(cfg: DictConfig, methods: Sequence[DictConfig], folder: Path) -> None:
    """Save a fresh adapter of each method into `folder`, exported if the engine takes it so; none for a vanilla row.

    The 4-bit base is loaded once: each adapter is added to it, saved, and taken off again.
    """
    base: Any = None
    for own in (own for own in methods if own.method.config is not None):
        base = base or base_model.load_quantized(cfg.model, cfg.trainer, cfg.cache_dir)
        model = get_peft_model(base, adapter_config(own.method, base))
        model.save_pretrained(str(folder / "adapters" / own.method.name), save_embedding_layers=False)
        base = model.unload()
        base.peft_config = {}
        _served(own, folder)


def _served(own: DictConfig, folder: Path) -> Path | None:
    if own.method.config is None:
        return None
    return served(folder / "adapters" / own.method.name, folder / "lora" / own.method.name, own.engine.name)


def _brief(benchmark: Benchmark) -> Benchmark:
    new = benchmark.config.get("max_new_tokens", TOKENS)
    return replace(benchmark, config=benchmark.config | {"max_new_tokens": min(new, TOKENS)})

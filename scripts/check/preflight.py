"""The preflight of a table: what it will need, tried once before the first run is trained."""

import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from omegaconf import DictConfig

from eval import sandbox
from scripts.cell.process import start_worker
from scripts.check.walk import Check, LeftOut, walk
from scripts.config import compose
from scripts.table import grid
from scripts.table.rehearsal import rehearse

GIB = 2**30
ITEMS = 2  # of each benchmark, for each adapter


def checks(cfg: DictConfig, overrides: Sequence[str]) -> list[Check]:
    """The checks for a table, the quick ones first.   overrides: as for `grid.cells`"""
    return [
        Check("settings, data and renderer", lambda: rehearsed(cfg, overrides)),
        Check("methods", lambda: methods_fit(cfg, overrides)),
        Check("GPU", lambda: gpu_found(cfg)),
        Check("GPU memory", lambda: memory_fits(cfg, overrides)),
        Check("disk", lambda: disk_fits(cfg, overrides)),
        Check("sandbox", lambda: sandbox_found(cfg)),
        Check("base model", lambda: base_model_found(cfg)),
        Check("adapters and engine", lambda: answered(cfg, overrides)),
    ]


def prepare(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """What a table does before its first run: the checks that the setting `preflight` asks for.

    Raises the error of the settings or the data; exits with 1 if another check fails.
    """
    if cfg.preflight == "none":
        return
    rehearse(cfg, overrides)
    methods_fit(cfg, overrides)
    if cfg.preflight == "engine":
        failed = walk(checks(cfg, overrides)[2:])
        if failed:
            sys.exit(f"error: {len(failed)} checks failed: {'; '.join(failed)}")


def rehearsed(cfg: DictConfig, overrides: Sequence[str]) -> str:
    """The settings are right, the data is here and complete, and dry values come out as a table."""
    rehearse(cfg, overrides)
    return f"{len(cfg.table.datasets)} training sets, {len(grid.shown_benchmarks(cfg))} benchmarks"


def methods_fit(cfg: DictConfig, overrides: Sequence[str]) -> str:
    """Every method of the table can be added to the base model, by its shapes alone."""
    from scripts.cost.parameters import trainable_parameters

    composed = [compose([*overrides, f"method={method}"]) for method in _methods(cfg)]
    trained = [own for own in composed if own.method.config is not None]
    for own in trained:
        trainable_parameters(own)
    return f"{len(trained)} fit {cfg.model.name}"


def gpu_found(cfg: DictConfig) -> str:
    """There is a GPU that torch uses, where the profile asks for one."""
    import torch

    from scripts.measure.machine import device, gpu_problem

    if problem := gpu_problem():
        raise ValueError(problem)
    if cfg.gpus_per_run and not torch.cuda.is_available():
        raise ValueError(
            f"profile={cfg.profile} is meant for a GPU, and torch finds none; run it where there is one, or say "
            "gpus_per_run=0 to use the CPU all the same."
        )
    return device()


def memory_fits(cfg: DictConfig, overrides: Sequence[str]) -> str:
    """Every method trains in the free memory of this GPU, by the plan's model of memory."""
    import torch

    from scripts.cost.plan import plan

    if not torch.cuda.is_available():
        raise LeftOut("there is no GPU")
    free = torch.cuda.mem_get_info()[0] / GIB
    memory = plan(cfg, overrides).memory
    largest = memory.loc[memory.peak.idxmax()]
    if largest.peak > free:
        raise ValueError(
            f"{largest.method} needs {largest.peak:.1f} GiB to train, and {free:.1f} GiB are free: lower "
            "trainer.micro_batch_size, or end what else uses this GPU (nvidia-smi lists it)."
        )
    return f"at most {largest.peak:.1f} of {free:.1f} GiB ({largest.method})"


def disk_fits(cfg: DictConfig, overrides: Sequence[str]) -> str:
    """What will be written finds room."""
    from scripts.cost.disk import disk, shortages
    from scripts.cost.inputs import gather

    needs = disk(gather(cfg, overrides), Path(cfg.cache_dir))
    if lines := list(shortages(needs)):
        raise OSError(" ".join(lines))
    return f"{sum(need.bytes for need in needs) / GIB:.1f} GiB still to be written"


def sandbox_found(cfg: DictConfig) -> str:
    """Programs that a model writes can be shut in, if the table runs any."""
    programs = [config for config in _benchmark_configs(cfg) if config.get("programs")]
    if not programs:
        raise LeftOut("no benchmark of this table runs programs")
    allowed = all(config.get("allow_unprotected", False) for config in programs)
    return str(sandbox.require_protection(allowed))


def base_model_found(cfg: DictConfig) -> str:
    """The base model can be had, with its licence accepted, and is converted."""
    from scripts.cell.base_model import dequantized_checkpoint

    return str(dequantized_checkpoint(cfg.model, cfg.trainer, cfg.cache_dir))


def answered(cfg: DictConfig, overrides: Sequence[str]) -> str:
    """An untrained adapter of each method goes through export and engine to the scores of two items a benchmark.

    In a process of its own, whose memory is free again afterwards.
    """
    with ProcessPoolExecutor(1, get_context("spawn"), start_worker, (len(os.sched_getaffinity(0)),)) as process:
        return process.submit(partial(_answered, [*overrides], _methods(cfg))).result()


def _answered(overrides: list[str], methods: list[str]) -> str:
    from scripts.check.untrained import answer

    cfg = compose(overrides)
    Path(cfg.cache_dir).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cfg.cache_dir, prefix=".preflight-") as folder:
        count = answer(cfg, [compose([*overrides, f"method={method}"]) for method in methods], Path(folder), ITEMS)
    return f"{count} answers scored, of {len(methods)} methods with {cfg.engine.name}"


def _methods(cfg: DictConfig) -> list[str]:
    return [method for row in grid.rows(cfg) for method in row.methods]


def _benchmark_configs(cfg: DictConfig) -> list[DictConfig]:
    return [cfg.benchmark[name] for name in grid.shown_benchmarks(cfg)]

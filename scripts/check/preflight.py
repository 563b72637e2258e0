"""The preflight of a table: what it will need, tried once before the first run is trained."""

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from filelock import FileLock
from joblib import cpu_count
from omegaconf import DictConfig

from eval import sandbox
from scripts.cell.parameters import trainable_parameters
from scripts.cell.process import start_worker, worker_pool
from scripts.check.walk import Check, LeftOut, walk
from scripts.config import compose
from scripts.cost.gpu import RESERVE_GIB
from scripts.table import grid
from scripts.table.rehearsal import rehearse

if TYPE_CHECKING:  # a command imports torch only once every config is known to be right
    from scripts.cost.inputs import Inputs

Result = TypeVar("Result")

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
    trained = [own for own in _composed(overrides, _methods(cfg)) if own.method.config is not None]
    for own in trained:
        trainable_parameters(own)
    return f"{len(trained)} fit {cfg.model.name}"


def gpu_found(cfg: DictConfig) -> str:
    """There is a GPU that torch uses, where the profile asks for one. Raises ValueError if not."""
    from scripts.measure.machine import device, gpu_problem, require_gpu

    if cfg.gpus_per_run:
        require_gpu()
    if problem := gpu_problem():
        raise ValueError(problem)
    return device()


def memory_fits(cfg: DictConfig, overrides: Sequence[str]) -> str:
    """Every method trains in the free memory of this GPU, by the plan's model of memory. Raises ValueError if not."""
    import torch

    if not torch.cuda.is_available():
        raise LeftOut("there is no GPU")
    free = torch.cuda.mem_get_info()[0] / GIB
    inputs = _inputs(cfg, overrides)
    peaks = {method: inputs.memory(method).peak / GIB for method in inputs.adapters}
    if not peaks:
        raise LeftOut("no method of this table trains")
    largest = max(peaks, key=lambda method: peaks[method])
    if peaks[largest] + RESERVE_GIB > free:
        raise ValueError(
            f"{largest} needs {peaks[largest]:.1f} GiB to train besides {RESERVE_GIB} for CUDA, and {free:.1f} GiB are "
            "free: lower trainer.micro_batch_size, or end what else uses this GPU (nvidia-smi lists it)."
        )
    return f"at most {peaks[largest]:.1f} of {free:.1f} GiB ({largest})"


def disk_fits(cfg: DictConfig, overrides: Sequence[str]) -> str:
    """What will be written finds room. Raises OSError if not."""
    from scripts.cost.disk import disk, shortages

    needs = disk(_inputs(cfg, overrides), Path(cfg.cache_dir))
    if lines := list(shortages(needs)):
        raise OSError(" ".join(lines))
    return f"{sum(need.bytes for need in needs) / GIB:.1f} GiB still to be written"


def sandbox_found(cfg: DictConfig) -> str:
    """Programs that a model writes can be shut in, if the table runs any."""
    programs = [config for config in _benchmark_configs(cfg) if config.get("programs")]
    if not programs:
        raise LeftOut("no benchmark of this table runs programs")
    for config in programs:
        allowed, key = config.get("allow_unprotected", False), f"benchmark.{config.name}.allow_unprotected"
        found = sandbox.require_protection(allowed, key)
    return str(found)


def base_model_found(cfg: DictConfig) -> str:
    """The base model can be had, with its licence accepted, and is converted."""
    from scripts.cell.base_model import dequantized_checkpoint

    return str(dequantized_checkpoint(cfg.model, cfg.trainer, cfg.cache_dir))


def answered(cfg: DictConfig, overrides: Sequence[str]) -> str:
    """An untrained adapter of each method goes through export and engine to the scores of two items a benchmark.

    The adapters are made in one process, and the engine runs in another: each gives its memory back, the GPU's too.
    """
    methods = _methods(cfg)
    with scratch(Path(cfg.cache_dir)) as folder:
        alone(_saved, [*overrides], methods, folder)
        count = alone(_answered, [*overrides], methods, folder)
    return f"{count} answers scored, of {len(methods)} methods with {cfg.engine.name}"


@contextmanager
def scratch(cache_dir: Path) -> Iterator[Path]:
    """An empty folder, for one preflight at a time; removed in the end, or by the next one after a kill."""
    folder = cache_dir / ".preflight"
    cache_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(cache_dir / ".preflight.lock", mode=0o666):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def alone(function: Callable[..., Result], *arguments: object) -> Result:
    """Call `function` in a process of its own, which ends with this one. Raises what it raises.

    Raises ChildProcessError if the process is killed.
    """
    with worker_pool(1, start_worker, cpu_count()) as process:
        try:
            return process.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise ChildProcessError(
                "its process was killed, most likely for want of memory (dmesg tells); use a machine with more."
            ) from None


def _saved(overrides: list[str], methods: list[str], folder: Path) -> None:
    from scripts.check.untrained import save_untrained

    save_untrained(compose(overrides), _composed(overrides, methods), folder)


def _answered(overrides: list[str], methods: list[str], folder: Path) -> int:
    from scripts.check.untrained import answer

    return answer(compose(overrides), _composed(overrides, methods), folder, ITEMS)


def _composed(overrides: Sequence[str], methods: Sequence[str]) -> list[DictConfig]:
    return [compose([*overrides, f"method={method}"]) for method in methods]


def _inputs(cfg: DictConfig, overrides: Sequence[str]) -> "Inputs":
    """What memory and disk are counted from. Lengths of examples do not matter, so that no data is read."""
    from scripts.cost.inputs import gather

    without_data = cfg.copy()
    without_data.data = None
    return gather(without_data, overrides)


def _methods(cfg: DictConfig) -> list[str]:
    return [method for row in grid.rows(cfg) for method in row.methods]


def _benchmark_configs(cfg: DictConfig) -> list[DictConfig]:
    return [cfg.benchmark[name] for name in grid.shown_benchmarks(cfg)]

"""Interfaces that Hydra, joblib and submitit do not promise to keep, one function each (docs/upgrading.md, scripts)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig


def hydra_launcher(overrides: Sequence[str], task: Callable[[DictConfig], None]) -> Launcher:
    """The launcher that the overrides choose, ready to call `task` for each job; Hydra must be initialized.

    Hydra makes it for its own sweeper only, which takes no list of jobs.
    """
    api = GlobalHydra.instance().hydra
    assert api is not None
    cfg = api.compose_config("config", [*overrides], run_mode=RunMode.MULTIRUN, with_log_configuration=False)
    context = HydraContext(config_loader=api.config_loader, callbacks=Callbacks(cfg))
    return Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=cfg)


def error_of(result: JobReturn) -> BaseException | None:
    """What a job raised, or None. `return_value` would raise it."""
    return None if result.status == JobStatus.COMPLETED else result._return_value


def end_idle_workers() -> None:
    """End joblib's workers, which would keep this process for five more minutes."""
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown()


def slurm_result() -> Path:
    """Where submitit, in the job that this process belongs to, looks for what the job returned."""
    import submitit

    return Path(submitit.JobEnvironment().paths.result_pickle)


def write_slurm_result(path: Path, value: Any) -> None:
    """Leave `value` as what the job returned, in submitit's format."""
    from submitit.core.utils import cloudpickle_dump, temporary_save_path

    with temporary_save_path(path) as temporary:
        cloudpickle_dump(("success", value), temporary)

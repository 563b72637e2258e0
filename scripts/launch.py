"""Runs training cells through Hydra's launcher plugins: local, joblib, and whatever `configs/hydra/launcher` names.

Hydra's own sweeper can only take full products (method x dataset x seed); a resumed table or a search with impossible
combinations is not one, so the launcher is handed the list of jobs itself.
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import hydra
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.types import HydraContext, RunMode
from joblib.externals.loky import get_reusable_executor
from omegaconf import DictConfig

from scripts.errors import CONFIGS, sentence


def launch(common: Sequence[str], jobs: Sequence[Sequence[str]], launcher: str | None, workers: int) -> list[str]:
    """Train one run per job and wait; finished runs return at once.

    common:   Hydra overrides that all jobs share;  jobs: the overrides of each
    launcher: a Hydra launcher ("joblib", "slurm", "ray"); None: this machine, `workers` runs at a time
    returns one line per failed job: its overrides and the error. The others have finished.

    The launcher runs in a process of its own, so that memory of a GPU is free again when evaluation starts.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_launch, list(common), [list(job) for job in jobs], launcher, workers).result()


def _launch(common: list[str], jobs: list[list[str]], launcher: str | None, workers: int) -> list[str]:
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        api = GlobalHydra.instance().hydra
        assert api is not None
        chosen = [*common, *_plugin(launcher, workers)]
        cfg = api.compose_config("config", chosen, run_mode=RunMode.MULTIRUN, with_log_configuration=False)
        context = HydraContext(config_loader=api.config_loader, callbacks=Callbacks(cfg))
        plugin = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=_train, config=cfg)
        returns = plugin.launch([[*common, *job] for job in jobs], initial_job_idx=0)
    get_reusable_executor().shutdown()  # joblib's idle workers would keep this process for five more minutes
    return [
        f"{' '.join(job)}: {sentence(result._return_value)}"
        for job, result in zip(jobs, returns, strict=True)
        if result.status != JobStatus.COMPLETED
    ]


def _plugin(launcher: str | None, workers: int) -> list[str]:
    """The launcher's overrides: plain and in turn for one worker, joblib for several on this machine."""
    if launcher is not None:
        return [f"hydra/launcher={launcher}"]
    return ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={workers}"] if workers > 1 else []


def _train(cfg: DictConfig) -> None:
    from scripts.training import train  # torch: only where a run is trained

    train(cfg)

"""Runs training cells through Hydra's launcher plugins: local, joblib, and whatever `configs/hydra/launcher` names.

Hydra's sweeper takes full products only: every method with every dataset and seed. A table that goes on, or a search
with impossible combinations, is a list of jobs. So we hand the list to the launcher ourselves.
"""

import os
import signal
import subprocess
import warnings
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor

import hydra
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from scripts.cell.process import worker_pool
from scripts.command import print_in_any_locale, sentence
from scripts.config import CONFIGS, completed
from scripts.table import local, private

# What submitit and Ray raise for a lost worker, by name: neither is imported where it is not used.
LOST = {"UncompletedJobError", "WorkerCrashedError", "NodeDiedError", "OutOfMemoryError", "OwnerDiedError"}


def launch(
    common: Sequence[str], jobs: Sequence[Sequence[str]], launcher: str | None, workers: int, evaluating: bool = False
) -> list[str]:
    """Train one run per job and wait; finished runs return at once.

    common:   Hydra overrides that all jobs share;  jobs: the overrides of each
    launcher: a Hydra launcher ("joblib", "slurm", "ray"); None: this machine, `workers` runs at a time, each evaluated
        when it is trained if `evaluating`
    returns one line per failed job: its overrides and the error. The others have finished.
    Raises BrokenExecutor if a worker was killed; the other jobs may not have finished then. OSError if the cluster
    refuses.

    The launcher runs in a process of its own, so that memory of a GPU is free again when evaluation starts.
    """
    if launcher is None:
        return local.run(common, jobs, workers, evaluating)
    with worker_pool(1) as pool:
        return pool.submit(_launch, completed(common), [list(job) for job in jobs], launcher, workers).result()


def _launch(common: list[str], jobs: list[list[str]], launcher: str | None, workers: int) -> list[str]:
    with warnings.catch_warnings(), hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        # Our ray.yaml has the name of the one that Hydra's plugin brings along.
        warnings.filterwarnings("ignore", "(?s).*ConfigStore schema with the same name", UserWarning)
        plugin = private.hydra_launcher([*common, *_plugin(launcher, workers)], train_job)
        try:
            returns = plugin.launch([[*common, *job] for job in jobs], initial_job_idx=0)
        except BrokenExecutor:
            raise
        except Exception as error:
            if type(error).__name__ in LOST:
                raise BrokenExecutor("The worker was killed.") from None  # others do not survive pickling
            if isinstance(error, RuntimeError):  # submitit's, of a Slurm that is not there or does not want the job
                raise OSError(f"launcher={launcher}: {sentence(error)}") from None
            raise
        finally:
            private.end_idle_workers()
    errors = [(job, private.error_of(result)) for job, result in zip(jobs, returns, strict=True)]
    return [f"{' '.join(job)}: {sentence(error)}" for job, error in errors if error is not None]


def _plugin(launcher: str | None, workers: int) -> list[str]:
    """The launcher's overrides: plain and in turn for one worker, joblib for several on this machine."""
    if launcher is not None:
        return [f"hydra/launcher={launcher}"]
    return ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={workers}"] if workers > 1 else []


def train_job(cfg: DictConfig) -> None:
    from scripts.cell.training import train  # torch: only where a run is trained

    if "SUBMITIT_FOLDER" in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit ignores it, and `scancel` would have to wait
    print_in_any_locale()
    train(cfg)


def settle(folder: str) -> None:
    """The end of a Slurm job's script: settle a job whose Python was killed before it wrote a result to `folder`.

    On a cluster without accounting, submitit would wait for its result forever. The job goes back to the queue once;
    killed again, it is a failed one. After the loss of a node Slurm itself starts it again.
    """
    os.environ["SUBMITIT_FOLDER"] = folder
    result = private.slurm_result()
    if result.exists():
        return
    if "SLURM_RESTART_COUNT" not in os.environ:
        subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
        return
    failed = JobReturn(status=JobStatus.FAILED)
    failed.return_value = RuntimeError(f"The job was killed twice; its output is in {result.parent}.")
    private.write_slurm_result(result, failed)

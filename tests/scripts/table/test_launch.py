"""Killed workers: what the launchers raise becomes one kind of error, and a Slurm job settles its own end."""

import multiprocessing
import os
import pickle
from concurrent.futures import BrokenExecutor
from pathlib import Path

import hydra
import pytest
from hydra.core.utils import JobStatus
from hydra.utils import get_class
from joblib import Parallel, delayed
from omegaconf import DictConfig, OmegaConf

from scripts.config import completed
from scripts.table import launch, private


class WorkerCrashedError(Exception):
    """Named as Ray's."""


class UncompletedJobError(RuntimeError):
    """Named as submitit's."""


class Plugin:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def launch(self, *args: object, **kwargs: object) -> None:
        raise self.error


def raised(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(private, "hydra_launcher", lambda *args: Plugin(error))
    launch._launch(["profile=smol"], [["seed=0"]], None, 1)


@pytest.mark.parametrize("error", [WorkerCrashedError("gone"), UncompletedJobError("no output\nin many lines")])
def test_a_lost_worker_is_a_broken_executor(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    with pytest.raises(BrokenExecutor, match=r"^The worker was killed\.$") as found:
        raised(monkeypatch, error)
    assert pickle.loads(pickle.dumps(found.value)).args == found.value.args  # it comes out of another process


def test_a_cluster_that_refuses_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match=r"^launcher=None: sbatch: no such partition$"):
        raised(monkeypatch, RuntimeError("sbatch:\nno such partition"))


def test_other_errors_of_a_launcher_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError):
        raised(monkeypatch, KeyError("a bug"))


def test_the_names_are_those_of_submitit_and_ray() -> None:
    exceptions = pytest.importorskip("ray.exceptions")
    utils = pytest.importorskip("submitit.core.utils")
    assert all(hasattr(exceptions, name) or hasattr(utils, name) for name in launch.LOST)


@pytest.mark.parametrize("name, cpus", [("slurm", "cpus_per_task"), ("ray", "ray.remote.num_cpus")])
def test_a_launcher_has_a_plugin_and_takes_one_cpu(name: str, cpus: str) -> None:
    cfg = OmegaConf.load(launch.CONFIGS / "hydra" / "launcher" / f"{name}.yaml")
    assert OmegaConf.select(cfg, cpus) == 1
    pytest.importorskip(cfg._target_.partition(".launcher")[0].rpartition(".")[0])
    assert get_class(cfg._target_)


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_hydra_makes_a_launcher_that_runs_a_list_of_jobs(launcher: str) -> None:
    """Notices a change of `hydra._internal` and of what a launcher returns."""
    with hydra.initialize_config_dir(str(launch.CONFIGS), version_base="1.3"):
        plugin = private.hydra_launcher([*completed([]), f"hydra/launcher={launcher}"], halved)
        returned = plugin.launch([["seed=4"], ["seed=0"]], initial_job_idx=0)
    assert [str(private.error_of(result)) for result in returned] == ["None", "integer division or modulo by zero"]


def halved(cfg: DictConfig) -> int:
    return 8 // cfg.seed


def test_joblib_s_idle_workers_end() -> None:
    Parallel(n_jobs=2)(delayed(os.getpid)() for _ in range(4))
    private.end_idle_workers()
    assert not multiprocessing.active_children()


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Slurm job, with an `scontrol` that notes what it is told; returns the job's folder."""
    command = tmp_path / "bin" / "scontrol"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SUBMITIT_FOLDER", "")  # so that it is restored
    for name, value in {"JOB_ID": "9", "ARRAY_JOB_ID": "7", "ARRAY_TASK_ID": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    (tmp_path / "7_1").mkdir()
    return tmp_path


def test_a_job_killed_once_goes_back_to_the_queue(job: Path) -> None:
    launch.settle(f"{job}/%j")
    assert (job / "told").read_text() == "requeue 9\n"
    assert not list((job / "7_1").iterdir())


def test_a_job_killed_twice_is_a_failed_one(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    launch.settle(f"{job}/%j")
    outcome, returned = pickle.loads((job / "7_1" / "7_1_0_result.pkl").read_bytes())
    assert outcome == "success"  # of submitit: it has something to return
    assert returned.status == JobStatus.FAILED
    assert str(returned._return_value) == f"The job was killed twice; its output is in {job}/7_1."
    assert not (job / "told").exists()


def test_a_job_with_a_result_is_left_alone(job: Path) -> None:
    (job / "7_1" / "7_1_0_result.pkl").write_bytes(b"a result")
    launch.settle(f"{job}/%j")
    assert not (job / "told").exists()
    assert (job / "7_1" / "7_1_0_result.pkl").read_bytes() == b"a result"

"""Eight cells by Slurm and by Ray on this machine, one worker of each killed: the same bytes as a local run."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TRAIN = """
import sys
from scripts.config import compose
from scripts.table import grid
from scripts.table import produce as tables
cfg = compose(sys.argv[1:])
tables.train_missing(cfg, sys.argv[1:], grid.cells(cfg, sys.argv[1:]))
"""
CELLS = [
    *("profile=micro", "table=table2", "methods=[lora_r2,mos_r8]"),
    *("trainer.max_steps=6", "trainer.save_steps=2", "trainer.eval_steps=6"),
]


def start(folder: Path, *extra: str) -> subprocess.Popen[str]:
    """Train what is missing in `folder`, with one thread as the launchers' configs have it."""
    command = [sys.executable, "-c", TRAIN, *CELLS, f"runs_dir={folder}", *extra]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    try:
        _, stderr = process.communicate(timeout=900)
    finally:
        process.kill()
    assert process.returncode == 0, stderr
    return stderr


def adapters(folder: Path) -> dict[str, bytes]:
    return {file.parts[-3]: file.read_bytes() for file in folder.glob("*/*/*/adapter/adapter_model.safetensors")}


def holder(lock: Path) -> int:
    """The process that has this file open: the one that trains the run."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if link.readlink() == lock:
                return int(link.parts[2])
        except OSError:  # it is gone already
            continue
    raise AssertionError(f"nobody has {lock} open")


def kill_one(folder: Path, process: subprocess.Popen[str]) -> Path:
    """SIGKILL the worker of the first MoS run that has a checkpoint; returns the run."""
    while not (found := list(folder.glob("*/*/mos*/checkpoints/checkpoint-*/trainer_state.json"))):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    run = found[0].parents[2]
    os.kill(holder(run / ".lock"), signal.SIGKILL)
    return run


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("local")
    finish(start(folder))
    found = adapters(folder)
    assert len(found) == 8
    return found


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if os.geteuid() or not shutil.which("slurmctld"):
        pytest.skip("needs root and Debian's slurm-wlm (scripts/slurm_node.sh installs it)")
    node = [str(ROOT / "scripts" / "slurm_node.sh")]
    subprocess.run([*node, "start", str(tmp_path / "node")], check=True, capture_output=True)
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "node" / "slurm.conf"))
    yield
    subprocess.run(["scancel", "--user", "root", "--signal", "KILL"], check=True)
    subprocess.run([*node, "stop", str(tmp_path / "node")], check=True)


def check(local: dict[str, bytes], folder: Path, launcher: str) -> None:
    process = start(folder, f"launcher={launcher}")
    run = kill_one(folder, process)
    assert not (run / "run.json").exists()  # it was not too late
    finish(process)
    assert adapters(folder) == local
    assert "8 cells, 0 to train" in finish(start(folder, f"launcher={launcher}"))


@pytest.mark.slow
def test_slurm_gives_the_same_bytes(local: dict[str, bytes], slurm: None, tmp_path: Path) -> None:
    check(local, tmp_path / "runs", "slurm")


@pytest.mark.slow
def test_ray_gives_the_same_bytes(local: dict[str, bytes], tmp_path: Path) -> None:
    check(local, tmp_path / "runs", "ray")


@pytest.mark.parametrize("there", [(), ("munged",), ("slurmctld", "slurmd")])
def test_the_node_installs_what_is_missing(tmp_path: Path, there: tuple[str, ...]) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    stand_ins = {"id": "echo 0", "apt-get": 'echo "$*" >>"$LOG"; exit 9'} | dict.fromkeys(there, "exit 9")
    for name, text in stand_ins.items():
        (tools / name).write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        (tools / name).chmod(0o755)
    log = tmp_path / "log"
    environment = {"PATH": f"{tools}:{_without_slurm(tmp_path)}", "LOG": str(log)}
    command = [str(ROOT / "scripts" / "slurm_node.sh"), "start", str(tmp_path / "node")]
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 9
    assert log.read_text(encoding="utf-8").startswith("update")


def _without_slurm(tmp_path: Path) -> Path:
    """A folder with the few programs that the script calls before it installs, and no other."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "env", "mkdir", "realpath", "sleep"):
        (folder / name).symlink_to(str(shutil.which(name)))
    return folder

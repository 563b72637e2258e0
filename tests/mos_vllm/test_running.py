"""What tests start ends with them."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.mos_vllm.running import run

ROOT = Path(__file__).resolve().parents[2]
# A process that starts another, which writes its number and waits; both in one group.
PARENT = """
import os, subprocess, sys, time
child = "import os, sys, time; open(sys.argv[1] + '.new', 'w').write(str(os.getpid())); " \\
        "os.rename(sys.argv[1] + '.new', sys.argv[1]); time.sleep(60)"
process = subprocess.Popen([sys.executable, "-c", child, sys.argv[1]], stdout=subprocess.DEVNULL)
"""
RUNNER = """
import sys
from tests.mos_vllm.running import interrupt_on_sigterm, run
interrupt_on_sigterm()
run([sys.executable, "-c", sys.argv[1], sys.argv[2]], 60)
"""


def started(number: Path) -> int:
    """The process whose number comes into this file."""
    limit = time.monotonic() + 30
    while not number.exists():
        assert time.monotonic() < limit
        time.sleep(0.05)
    return int(number.read_text(encoding="utf-8"))


def has_ended(pid: int) -> bool:
    """Within ten seconds; a zombie has."""
    for _ in range(100):
        try:
            if ") Z" in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8"):
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


def test_the_processes_of_a_process_end_with_it(tmp_path):
    number = tmp_path / "number"
    program = PARENT + "while not os.path.exists(sys.argv[1]): time.sleep(0.05)\nprint('x')"
    assert run([sys.executable, "-c", program, str(number)], 60) == (0, "x\n")
    assert has_ended(started(number))


def test_they_end_at_a_limit(tmp_path):
    number, seconds = tmp_path / "number", 0.5
    while not number.exists():  # a limit that a slow machine needs to start two processes
        seconds *= 2
        with pytest.raises(subprocess.TimeoutExpired):
            run([sys.executable, "-c", PARENT + "process.wait()", str(number)], seconds)
    assert has_ended(started(number))


def test_they_end_with_a_test_that_is_terminated(tmp_path):
    command = [sys.executable, "-c", RUNNER, PARENT + "process.wait()", str(tmp_path / "number")]
    with subprocess.Popen(command, cwd=ROOT) as runner:
        child = started(tmp_path / "number")
        runner.send_signal(signal.SIGTERM)
        assert runner.wait(30) == -signal.SIGINT
    assert has_ended(child)

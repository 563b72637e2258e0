"""Worker processes end with the process that started them, whenever that ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CHILD = "import sys; from scripts.cell.process import die_with_parent; die_with_parent(int(sys.argv[1])); print('on')"


def run(parent: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", CHILD, str(parent)], cwd=ROOT, capture_output=True, encoding="utf-8")


def test_a_process_whose_parent_lives_goes_on() -> None:
    assert run(os.getpid()).stdout == "on\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
def test_a_process_whose_parent_has_ended_before_it_could_ask_ends() -> None:
    orphan = run(os.getpid() + 1)  # an orphan has another parent than the one that started it
    assert (orphan.returncode, orphan.stdout) == (1, "")

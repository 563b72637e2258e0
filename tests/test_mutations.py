"""The suite notices a broken method: each defect, put in on purpose, fails the checks that are there to catch it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CAUGHT_BY = {
    "b_not_zero": "tests/mos/test_mos.py::test_init",
    "indices_reshuffled": "tests/mos/test_mos.py::test_the_file_wins_over_the_seed",
    "mask_one_too_long": "tests/data_prep/test_chat.py",
    "mask_one_too_short": "tests/data_prep/test_chat.py",
}


@pytest.mark.slow  # four times the start of pytest with torch
@pytest.mark.parametrize("defect", CAUGHT_BY)
def test_the_suite_catches(defect):
    command = [sys.executable, "-m", "pytest", "-p", "tests.defects", "-m", "not slow", "-x", CAUGHT_BY[defect]]
    run = subprocess.run(command, cwd=ROOT, env=os.environ | {"DEFECT": defect}, capture_output=True, text=True)
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.stdout[-2000:] + run.stderr[-2000:]
    assert "AssertionError" in run.stdout or "Mismatch" in run.stdout, run.stdout[-2000:]

import os
import subprocess
import sys
from pathlib import Path

from eval import sandbox

ROOT = Path(__file__).resolve().parents[2]


def test_it_says_what_evaluates_where_and_behind_which_walls():
    done = subprocess.run(
        [sys.executable, "-m", "scripts.doctor"],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    found = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert list(found) == ["engine", "device", "sandbox"]
    assert found["device"].startswith("cpu")
    assert found["sandbox"] == str(sandbox.protection())

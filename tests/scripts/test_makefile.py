"""The Makefile hands its variables to the scripts, documents itself, and fails when a step fails."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.config import ROOT

SET = {
    "METHODS": "lora_r2,mos_r8",
    "SEEDS": "0,1",
    "LIMIT": "50",
    "DATA": "../some where",
    "CANDIDATES": "1",
    "LAUNCHER": "joblib",
    "DRY": "1",
    "OVERRIDES": "method.shards_per_vector=8",
}
GIVEN = [
    "profile=smol", "'methods=[lora_r2,mos_r8]'", "'seeds=[0,1]'", "limit=50", "'data=../some where'", "candidates=1",
    "launcher=joblib", "dry=true", "method.shards_per_vector=8",
]  # fmt: skip


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Under `make test` this make would know itself to be a child, and say which folder it enters.
    alone = {name: value for name, value in os.environ.items() if name not in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS")}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=alone, capture_output=True, text=True)


@pytest.mark.parametrize("table", ["table1", "table2", "table3"])
def test_variables_become_overrides(table: str) -> None:
    command = make("-n", table, "PROFILE=smol", *(f"{key}={value}" for key, value in SET.items())).stdout
    assert f"-m scripts.tables table={table} " in command
    for override in GIVEN:
        assert override in command


def test_unset_variables_are_left_to_the_profile() -> None:
    command = make("-n", "table2", "PROFILE=smol").stdout
    assert command.split("scripts.tables")[1].split() == ["table=table2", "profile=smol"]


def test_tables_are_all_three() -> None:
    command = make("-n", "tables", "PROFILE=paper", "DRY=1").stdout
    assert re.findall(r"table=(\w+) profile=paper dry=true", command) == ["table1", "table2", "table3"]


def test_without_a_profile_the_machine_decides(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho chosen\n")
    python.chmod(0o755)
    assert "profile=chosen" in make("-n", "table1", f"PY={python}").stdout


def test_plan_takes_a_table_and_gpus() -> None:
    command = make("-n", "plan", "TABLE=table3", "PROFILE=paper", "GPU=a100_40g,mine:24:165").stdout
    assert "scripts.plan table=table3 profile=paper 'gpus=[a100_40g,mine:24:165]'" in command


def test_help_lists_every_target() -> None:
    listed = make("help").stdout
    phony = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for target in " ".join(phony).split():
        assert re.search(rf"^([\w-]+ )*{target}\b", listed, flags=re.MULTILINE), target


def test_a_failing_step_fails_and_says_why_in_one_line() -> None:
    done = make("table2", f"PY={sys.executable}", "PROFILE=smol", "METHODS=lora_r3")
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "No table has a method 'lora_r3'" in errors[0]
    assert "Traceback" not in done.stderr

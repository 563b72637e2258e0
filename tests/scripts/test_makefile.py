"""The Makefile hands its variables to the scripts as they were typed, documents itself, and fails when a step fails."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import variables as handed
from scripts.config import ROOT

SET = {
    "PROFILE": "smol",
    "METHODS": "lora_r2,mos_r8",
    "DATASETS": "cot,code_alpaca",
    "SEEDS": "0,1",
    "LIMIT": "50",
    "DATA": "../some where",
    "CANDIDATES": "1",
    "RATES": "own",
    "LAUNCHER": "joblib",
    "DRY": "1",
    "SKIP_PREFLIGHT": "1",
    "GPU": "a100_40g,mine:24:165",
    "OVERRIDES": "method.shards_per_vector=8 'trainer.scheduler=a b'",
}
GIVEN = [
    "profile=smol", "data='../some where'", "limit=50", "methods=[lora_r2,mos_r8]", "datasets=[cot,code_alpaca]",
    "seeds=[0,1]", "candidates=1",
    "rates=own", "launcher=joblib", "gpus=[a100_40g,mine:24:165]", "dry=true", "preflight=none",
    "method.shards_per_vector=8", "trainer.scheduler=a b",
]  # fmt: skip
FOLDERS = [
    "a,b",
    "k=v",
    "p(1)",
    "día",
    "a#b",
    "it's",
    "cash$HOME",
    "$(shell echo no)",
    "with space",
    "a\\",
    '"',
    "%",
    "~",
]


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    # Under `make test` this make would know itself to be a child, and say which folder it enters.
    alone = {name: value for name, value in os.environ.items() if name not in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS")}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=alone | variables, capture_output=True, text=True)


@pytest.fixture
def python(tmp_path: Path) -> str:
    """`PY=` for make: a Python that runs nothing and prints its arguments and what make gave it in the environment."""
    program = tmp_path / "python"
    body = "print(json.dumps([sys.argv[1:], {k: v for k, v in os.environ.items() if k.startswith('MAKE_')}]))"
    program.write_text(f"#!{sys.executable}\nimport json, os, sys\n{body}\n", encoding="utf-8")
    program.chmod(0o755)
    return f"PY={program}"


def commands(done: subprocess.CompletedProcess[str]) -> list[tuple[list[str], list[str]]]:
    """The arguments of each started Python, and the overrides that scripts/make.py adds."""
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    return [(arguments, handed.overrides(given)) for arguments, given in lines]


@pytest.mark.parametrize("table", ["table1", "table2", "table3"])
def test_variables_become_overrides(python: str, table: str) -> None:
    ((arguments, overrides),) = commands(run(table, python, *(f"{key}={value}" for key, value in SET.items())))
    assert arguments == ["-m", "scripts.make", "tables", f"table={table}"]
    assert sorted(overrides) == sorted(GIVEN)


def test_variables_of_the_environment_count_too(python: str) -> None:
    ((_, overrides),) = commands(run("table2", python, PROFILE="smol", LIMIT="7"))
    assert overrides == ["profile=smol", "limit=7"]


def test_unset_and_empty_variables_are_left_to_the_profile(python: str) -> None:
    ((_, overrides),) = commands(run("table2", python, "PROFILE=smol", "DATA=", "DRY="))
    assert overrides == ["profile=smol"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_any_folder_can_be_data(python: str, folder: str) -> None:
    ((_, overrides),) = commands(run("table2", python, "PROFILE=smol", f"DATA={folder}"))
    assert overrides == ["profile=smol", f"data={handed.quoted(folder)}"]


def test_tables_are_all_three(python: str) -> None:
    started = commands(run("tables", python, "PROFILE=paper", "DRY=1"))
    assert [arguments[-1] for arguments, _ in started] == ["table=table1", "table=table2", "table=table3"]
    assert {tuple(overrides) for _, overrides in started} == {("profile=paper", "dry=true")}


def test_without_a_profile_the_machine_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handed, "default_profile", lambda: "chosen")
    assert handed.overrides({"MAKE_LIMIT": "2"}) == ["profile=chosen", "limit=2"]


@pytest.mark.parametrize("target", ["plan", "preflight", "dashboard"])
def test_a_target_of_one_table_takes_its_name(python: str, target: str) -> None:
    ((arguments, _),) = commands(run(target, python, "TABLE=table3", "PROFILE=paper"))
    assert arguments[2:] == [target, "table=table3"]


def test_help_lists_every_target() -> None:
    listed = run("help").stdout
    phony = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for target in " ".join(phony).split():
        assert re.search(rf"^([\w-]+ )*{target}\b", listed, flags=re.MULTILINE), target


def test_a_failing_step_fails_and_says_why_in_one_line() -> None:
    done = run("table2", f"PY={sys.executable}", "PROFILE=smol", "METHODS=lora_r3")
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "No table has it: Unknown method 'lora_r3'" in errors[0]
    assert "Traceback" not in done.stderr

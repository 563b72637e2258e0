"""The sandbox from the side of those who use it: right programs pass, wrong ones fail, and it says what protects."""

import gzip
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from eval import sandbox
from eval.benchmarks import humaneval
from eval.sandbox import Outcome, isolation

REPO = Path(__file__).resolve().parents[2]
FIXTURE = REPO / "tests/fixtures/eval/codex_humaneval/HumanEval.jsonl.gz"
SHARED = REPO.parent / "shared"
PROBLEM = {
    "prompt": "def double(x):\n",
    "entry_point": "double",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate('a') == 'aa'\n",
}


def check(problem, completion, timeout_s=3.0, **options):
    return sandbox.check(humaneval.program(problem, completion), timeout_s, **options)


RIGHT = {
    "plain": "    return 2 * x",
    "prints a lot": "    print('x' * 100_000)\n    return 2 * x",
    "writes to stderr": "    import sys\n    sys.stderr.write('x')\n    return 2 * x",
    "own temporary file": "    open('a', 'w').write('x')\n    return x * (1 + len(open('/tmp/a').read()))",
    "own folder": "    import os\n    os.makedirs('a/b', exist_ok=True)\n    return 2 * x",
    "typing and dataclasses": """    return Pair(x, x).sum()
from dataclasses import dataclass
from typing import Any
@dataclass
class Pair:
    a: Any
    b: Any
    def sum(self): return self.a + self.b
""",
    "standard library": """
    import asyncio, collections, datetime, decimal, fractions, functools, hashlib, heapq, itertools, json, math
    import random, re, statistics, string, subprocess, threading, unittest
    async def twice(): return 2 * x
    return asyncio.run(twice())""",
    "recursion": "    f = lambda n: 0 if n == 0 else 1 + f(n - 1)\n    assert f(900) == 900\n    return 2 * x",
    "deep recursion": """    import sys
    sys.setrecursionlimit(10 ** 6)
    f = lambda n: 0 if n == 0 else 1 + f(n - 1)
    assert f(50_000) == 50_000
    return 2 * x""",
    "threads": """    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(lambda y: 2 * y, [x]))[0]""",
    "a thread that goes on": """    import threading, time
    threading.Thread(target=time.sleep, args=(60,)).start()
    return 2 * x""",
    "300 MB": "    block = bytearray(3 * 10 ** 8)\n    return 2 * x",
    "an exception that it handles": "    try:\n        raise ValueError\n    except ValueError:\n        return 2 * x",
    "not the main program": "    return 2 * x\nassert __name__ != '__main__'\n",
}
WRONG = {
    "wrong answer": ("    return x", "failed: AssertionError"),
    "nothing": ("", "failed: IndentationError"),
    "no Python": ("    return 2 * x\n```\nSome text", "failed: SyntaxError"),
    "an unknown name": ("    return y", "failed: NameError"),
    "input": ("    input()\n    return 2 * x", "failed: OSError"),
    "exit": ("    import sys\n    sys.exit(0)", "failed: SystemExit"),
    "too slow": ("    import time\n    time.sleep(9)\n    return 2 * x", "timed out"),
    "too large": ("    return bytearray(1 << 31)", "failed: MemoryError"),
    "a null byte": ("    return 2 * x\0", "failed: "),
    "half of a surrogate pair": ("    return 2 * x  # \udc80", "failed: "),
    "crash": ("    import os\n    os.abort()", "failed: left before its end, with code 134"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_program_passes(name):
    assert check(PROBLEM, RIGHT[name], timeout_s=10.0) == Outcome(True, "passed")


@pytest.mark.skipif(isolation.packages_folder() is None, reason="numpy is not installed")
def test_numpy_is_there_as_in_the_original():
    completion = "    import numpy as np\n    return 2 * x if np.arange(3).sum() == 3 else None"
    assert check(PROBLEM, completion, timeout_s=10.0).passed


def test_without_numpy_only_its_import_fails(monkeypatch):
    monkeypatch.setattr(isolation, "packages_folder", lambda: None)
    isolation.python_files.cache_clear()
    outcomes = [check(PROBLEM, f"    {line}\n    return 2 * x") for line in ("# numpy", "import numpy")]
    isolation.python_files.cache_clear()
    assert outcomes[0].passed
    assert outcomes[1].status.startswith("failed: ModuleNotFoundError")


def test_limits_that_are_lower_already_stay():
    code = (
        "import resource\nfrom eval import sandbox\nresource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n"
        "print(sandbox.run(sandbox.protection().way, 'import os\\nfor _ in range(50): os.dup(1)', 3.0).status)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert "Too many open files" in result.stdout


@pytest.mark.parametrize("name", WRONG)
def test_wrong_program_fails_and_says_why(name):
    completion, status = WRONG[name]
    outcome = check(PROBLEM, completion, timeout_s=1.0)
    assert not outcome.passed
    assert outcome.status.startswith(status)


def test_the_program_is_the_protocols_text(monkeypatch):
    seen = []
    monkeypatch.setattr(sandbox, "run", lambda way, program, timeout_s: seen.append((program, timeout_s)))
    check({"prompt": "P", "test": "T", "entry_point": "E"}, "C", timeout_s=2.0)
    assert seen[-1] == ("PC\nT\ncheck(E)", 2.0)


@pytest.mark.parametrize("timeout_s", [0, -1.0, float("nan")])
def test_time_must_be_positive(timeout_s):
    with pytest.raises(ValueError, match=f"timeout_s={timeout_s}"):
        check(PROBLEM, RIGHT["plain"], timeout_s)


def test_many_at_a_time():
    completions = [RIGHT["plain"], WRONG["wrong answer"][0]] * 20
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda completion: check(PROBLEM, completion, 10.0), completions))
    assert [outcome.passed for outcome in outcomes] == [True, False] * 20


def golden_cases():
    lines = Path(__file__).with_name("golden_scores.jsonl").read_text(encoding="utf-8").split("\n")
    return [case for case in map(json.loads, filter(None, lines)) if case["benchmark"] == "humaneval"]


@pytest.mark.parametrize("case", golden_cases(), ids=lambda case: case["id"])
def test_golden(case):
    outcome = check(case["input"]["problem"], case["expected"]["completion"])
    assert outcome.passed == case["expected"]["passed"]


def test_the_canonical_solutions_of_the_fixture_pass():
    problems = [vars(problem) for problem in humaneval.load({"problems": [FIXTURE]}).problems]
    assert all(check(problem, problem["canonical_solution"], 10.0).passed for problem in problems)


@pytest.mark.slow
def test_every_canonical_solution_passes():
    path = SHARED / "data" / "eval" / "codex_humaneval" / "HumanEval.jsonl.gz"
    if not path.exists():
        pytest.skip(f"no {path}")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        problems = [json.loads(line) for line in file]
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda problem: check(problem, problem["canonical_solution"]), problems))
    assert [p["task_id"] for p, outcome in zip(problems, outcomes, strict=True) if not outcome.passed] == []


@pytest.fixture
def without(monkeypatch, tmp_path):
    """Makes `protection` look again, on a machine that lacks the given programs."""
    sandbox.protection.cache_clear()

    def remove(*missing: str) -> None:
        for folder in isolation.ENVIRONMENT["PATH"].split(":"):
            for program in Path(folder).iterdir():
                if program.name not in missing and not (tmp_path / program.name).exists():
                    (tmp_path / program.name).symlink_to(program)
        monkeypatch.setitem(isolation.ENVIRONMENT, "PATH", str(tmp_path))

    for folder in (tmp_path, *tmp_path.parents):  # root steps down to nobody, who must find the programs too
        if folder.name.startswith(("test_", "pytest-", "popen-")):  # the last is xdist's
            folder.chmod(0o755)
    yield remove
    sandbox.protection.cache_clear()


@pytest.mark.skipif(not shutil.which("bwrap"), reason="bubblewrap is not installed here")
def test_bubblewrap_is_preferred():
    sandbox.protection.cache_clear()
    assert sandbox.protection().way == "bubblewrap"
    assert "no network" in str(sandbox.protection())


def test_namespaces_do_without_bubblewrap(without):
    without("bwrap")
    assert sandbox.protection().way == "namespaces"
    assert check(PROBLEM, RIGHT["plain"]).passed
    assert not check(PROBLEM, "    return open('/etc/passwd')").passed


def test_refuses_without_protection(without):
    without("bwrap", "unshare", "setpriv")
    with pytest.raises(PermissionError, match="set allow_unprotected=true"):
        check(PROBLEM, RIGHT["plain"])
    assert sandbox.protection().way == "none"
    assert "bubblewrap: " in str(sandbox.protection())
    assert "namespaces: " in str(sandbox.protection())


def test_runs_without_protection_when_told_so(without):
    without("bwrap", "unshare", "setpriv")
    assert check(PROBLEM, RIGHT["plain"], allow_unprotected=True).passed
    assert not check(PROBLEM, "    import os\n    os._exit(0)", allow_unprotected=True).passed


def test_sandbox_that_does_not_start_is_no_verdict(without):
    without("bwrap")
    with pytest.raises(OSError, match="bwrap"):
        sandbox.run("bubblewrap", "", 3.0)

"""`scripts.evaluate`, killed ten times at random moments: what comes out is what an undisturbed evaluation gives.

The moments are counted in imports and in records (`killed.py`), not in seconds: a busy machine changes nothing.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from eval import predictions
from scripts.cell import training

ROOT = Path(__file__).resolve().parents[2]
KILLED = Path(__file__).with_name("killed.py")
KILLS = 10
IMPORTS = 1500  # fewer than an evaluation makes until its first record
ITEMS = 60  # per benchmark


@pytest.fixture
def data(tmp_path):
    """MMLU, GSM8K and HumanEval in the layouts of the original files, small enough for the tiny model's context."""
    root = tmp_path / "data" / "eval"
    questions = [f"What is {i} plus {i}?" for i in range(ITEMS)]
    cells = "".join(
        f"{question},{i},{2 * i},{3 * i + 1},{4 * i + 2},{'ABCD'[i % 4]}\n" for i, question in enumerate(questions)
    )
    problems = [
        {
            "task_id": f"HumanEval/{i}",
            "prompt": f"def add{i}(x):\n",
            "entry_point": f"add{i}",
            "canonical_solution": f"    return x + {i}\n",
            "test": f"def check(candidate):\n    assert candidate(1) == {i + 1}\n",
        }
        for i in range(ITEMS)
    ]
    sums = [{"question": question, "answer": f"#### {2 * i}"} for i, question in enumerate(questions)]
    write(root / "mmlu/dev/sums_dev.csv", cells)
    write(root / "mmlu/test/sums_test.csv", cells)
    write(root / "gsm8k/test.jsonl", "".join(json.dumps(row) + "\n" for row in sums))
    write(root / "codex_humaneval/HumanEval.jsonl", "".join(json.dumps(row) + "\n" for row in problems))
    return root.parent


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


ENGINES = {  # two sequences at a time: the work lasts
    "hf": ["engine=hf", "engine.batch_size=2"],
    "vllm": ["engine=vllm", "engine.max_num_seqs=2", "engine.max_model_len=256", "engine.cpu_kv_cache_gib=1"],
}


def command(tiny_cell, engine: str, run: Path, data: Path) -> list[str]:
    cache = next(override for override in tiny_cell if override.startswith("cache_dir="))
    return [
        *("scripts.evaluate", f"runs=[{run}]", f"data={data}", cache, *ENGINES[engine]),
        *("engine.dtype=float32", "benchmark=[humaneval,gsm8k,mmlu]", "profile=smol"),
        *("benchmark.gsm8k.shots=0", "evaluation.max_new_tokens=24", f"runs_dir={run.parent}"),
        *("evaluation.humaneval.samples=2", "evaluation.humaneval.temperature=0.1"),
    ]


def result(run: Path) -> tuple[dict[str, tuple[bytes, dict]], dict[str, float]]:
    """{result folder: (metrics.json, predictions by id)}; and apart the logits, whose last bits depend on the batch.

    Without the notes on programs: one that is wrong anyway is "timed out" where the machine is too busy to run it.
    """
    rows = {f: predictions.read(f / "predictions.jsonl") for f in sorted((run / "eval").iterdir())}
    for row in (row for folder, part in rows.items() if folder.name.startswith("humaneval") for row in part.values()):
        del row["notes"]
    letters = {
        f"{key} {letter}": logit
        for folder, part in rows.items()
        if folder.name.startswith("mmlu")
        for key, row in part.items()
        for letter, logit in row.pop("outputs")[0].items()
    }
    return {folder.name: ((folder / "metrics.json").read_bytes(), part) for folder, part in rows.items()}, letters


def lines(run: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in run.glob("eval/*/predictions.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_ten_kills_change_nothing(engine, tiny_cell, tiny, data, tmp_path):
    killed = training.train(tiny())
    clean = killed.with_name("clean")
    shutil.copytree(killed, clean)
    chance = random.Random(0)
    for number in range(KILLS):  # half of the kills hit the start, the others the work
        kind, moment = ("import", chance.randint(1, IMPORTS)) if number % 2 else ("record", chance.randint(1, 30))
        before = lines(killed)
        arguments = command(tiny_cell, engine, killed, data)
        done = subprocess.run([sys.executable, KILLED, kind, str(moment), *arguments], cwd=ROOT, capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
        assert lines(killed) == before + (moment if kind == "record" else 0)
    assert 0 < lines(killed) < 3 * ITEMS
    for run in (killed, clean):
        arguments = command(tiny_cell, engine, run, data)
        subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, check=True, capture_output=True)
    (files, logits), (clean_files, clean_logits) = result(killed), result(clean)
    assert len(clean_files) == 3
    for folder, (metrics, rows) in clean_files.items():
        assert {key: row for key, row in files[folder][1].items() if row != rows[key]} == {}
        assert files[folder][0] == metrics
    assert len(clean_logits) == 4 * ITEMS
    assert logits == pytest.approx(clean_logits, abs=1e-5)

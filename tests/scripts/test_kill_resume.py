"""`scripts.evaluate`, killed ten times at random moments: what comes out is what an undisturbed evaluation gives."""

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eval import predictions
from scripts.cell import training

ROOT = Path(__file__).resolve().parents[2]
KILLS = 10
ITEMS = 150  # per benchmark: more than a fast machine does between two looks


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
        *(sys.executable, "-m", "scripts.evaluate", f"runs=[{run}]", f"data={data}", cache, *ENGINES[engine]),
        *("engine.dtype=float32", "benchmark=[humaneval,gsm8k,mmlu]", "profile=smol"),
        *("benchmark.gsm8k.shots=0", "evaluation.max_new_tokens=24", f"runs_dir={run.parent}"),
        *("evaluation.humaneval.samples=2", "evaluation.humaneval.temperature=0.1"),
    ]


def result(run: Path) -> tuple[dict[str, tuple[bytes, dict]], dict[str, float]]:
    """{result folder: (metrics.json, predictions by id)}; and apart the logits, whose last bits depend on the batch."""
    rows = {f: predictions.read(f / "predictions.jsonl") for f in sorted((run / "eval").iterdir())}
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


def kill_after(process: subprocess.Popen, run: Path, new: int, pause: float) -> float:
    """Kill `pause` seconds after so many new items are there; returns the seconds until then."""
    before, started = lines(run), time.monotonic()
    while process.poll() is None and lines(run) < before + new:
        time.sleep(0.005)
    reached = time.monotonic() - started
    time.sleep(pause)
    process.kill()
    process.wait()
    return reached


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_ten_kills_change_nothing(engine, tiny_cell, tiny, data, tmp_path):
    killed = training.train(tiny())
    clean = killed.with_name("clean")
    shutil.copytree(killed, clean)
    chance = random.Random(0)
    seen = []
    start = 60.0  # seconds that a process needed to its first items: a fast machine must not finish meanwhile
    for number in range(KILLS):
        process = subprocess.Popen(command(tiny_cell, engine, killed, data), cwd=ROOT, stderr=subprocess.DEVNULL)
        if number % 2:  # half of the kills hit the start, the others the work
            kill_after(process, killed, 0, chance.uniform(0, 0.7 * start))
        else:
            reached = kill_after(process, killed, chance.randint(5, 30), chance.uniform(0, 0.05))
            start = min(start, reached)
        seen.append(lines(killed))
    assert len(set(seen)) > 4 and seen[-1] < 3 * ITEMS, seen  # at different stages
    for run in (killed, clean):
        subprocess.run(command(tiny_cell, engine, run, data), cwd=ROOT, check=True, capture_output=True)
    (files, logits), (clean_files, clean_logits) = result(killed), result(clean)
    assert len(clean_files) == 3
    assert files == clean_files
    assert len(clean_logits) == 4 * ITEMS
    assert logits == pytest.approx(clean_logits, abs=1e-5)

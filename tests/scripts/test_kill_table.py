"""A table, killed ten times from its preflight to its last evaluation: the same table, and no process stays.

When to kill is counted in the files that appear, not in seconds: a busy machine changes nothing.
"""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
KILLS = 10
PATIENCE = 60.0  # seconds in which the processes of a killed table end


@pytest.fixture
def command(tiny_checkpoint, conversations, tmp_path):
    """`command(name)`: Table 3 on the tiny model, below a folder of that name."""
    checkpoint = tmp_path / "llama"
    AutoModelForCausalLM.from_pretrained(tiny_checkpoint, max_position_embeddings=2048).save_pretrained(checkpoint)
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(checkpoint)

    def made(name):
        folders = [f"{kind}_dir={tmp_path / name / kind}" for kind in ("runs", "cache", "results")]
        trainer = {"max_steps": 6, "save_steps": 2, "batch_size": 2, "max_length": 64, "validation_size": 8}
        return [
            *(sys.executable, "-m", "scripts.tables", "profile=smol", "table=table3", "methods=[lora_r2]"),
            *("models={7b: local, 13b: local}", f"++model.source.path={checkpoint}", f"data={FIXTURES}"),
            *(f"dataset.source.messages={conversations}", "engine=hf", "limit=2", "evaluation.max_new_tokens=8"),
            *(f"trainer.{key}={value}" for key, value in trainer.items()),
            *folders,
        ]

    return made


def files(folder: Path) -> set[Path]:
    found: set[Path] = set()
    for root, folders, names in os.walk(folder):  # unlike a glob it passes over what disappears meanwhile
        found |= {Path(root, name) for name in (*folders, *names)}
    return found


def marked(marker: str) -> list[int]:
    """The processes with this text in their environment."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if marker.encode() in environ.read_bytes():
                found.append(int(environ.parent.name))
        except OSError:  # it has ended, or is another user's
            continue
    return found


@pytest.mark.slow
def test_ten_kills_give_the_same_table_and_leave_no_process(command, tmp_path):
    clean = subprocess.run(command("clean"), cwd=ROOT, capture_output=True, encoding="utf-8")
    assert clean.returncode == 0, clean.stderr[-4000:]
    chance = random.Random(0)
    moments = []
    for _ in range(KILLS):
        before, wanted = files(tmp_path / "killed"), chance.randint(0, 25)
        process = subprocess.Popen(
            command("killed"), cwd=ROOT, env=os.environ | {"MOS_TEST": str(tmp_path)}, stderr=subprocess.DEVNULL
        )
        while len(files(tmp_path / "killed") - before) < wanted and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.wait()
        end = time.monotonic() + PATIENCE
        while (left := marked(f"MOS_TEST={tmp_path}")) and time.monotonic() < end:
            time.sleep(0.1)
        assert not left
        moments.append(len(files(tmp_path / "killed")))
    assert len(set(moments)) > KILLS / 2
    done = subprocess.run(command("killed"), cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-4000:]
    for name in ("table3.csv", "table3.md"):
        [one], [other] = (list((tmp_path / kind / "results").rglob(name)) for kind in ("clean", "killed"))
        assert one.read_bytes() == other.read_bytes()
    assert not (tmp_path / "killed" / "cache" / ".preflight").exists()

"""A training of SmolLM2 that is killed after a checkpoint, and started again."""

import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

from scripts.check.processes import finished, last_line, printed, started

STEPS, SAVED = 6, 2  # of the run, and between checkpoints
PATIENCE = 300.0  # seconds for a checkpoint to come, and for the rest to follow


def killed_and_resumed() -> str:
    """Train, kill after the first checkpoint, train again. Raises ValueError if the run is not finished then."""
    with tempfile.TemporaryDirectory() as folder:
        command = _command(Path(folder))
        with printed() as out, started(command, out, out) as first:
            _wait_for_checkpoint(first, Path(folder), out)
        reached = _checkpoints(Path(folder))
        finished(command, PATIENCE)
        [done] = Path(folder).glob("runs/*/*/*/run.json")
        losses = json.loads(done.read_text(encoding="utf-8"))["metrics"]
    if not math.isfinite(losses["loss"]):
        raise ValueError(f"the loss after the resume is {losses['loss']}; use the pinned versions (make setup).")
    went = f"killed after step {max(reached)}" if max(reached) < STEPS else "finished before the kill"
    return f"SmolLM2, {STEPS} steps, {went}; loss {losses['first_loss']:.2f} to {losses['loss']:.2f}"


def _command(folder: Path) -> list[str]:
    conversations = folder / "messages.jsonl"
    asked = [{"role": "user", "content": "What is {0} plus {0}?"}, {"role": "assistant", "content": "It is {1}."}]
    rows = [
        {"messages": [{**m, "content": m["content"].format(number, 2 * number)} for m in asked]} for number in range(64)
    ]
    conversations.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [
        *(sys.executable, "-m", "scripts.train", "profile=smol", "method=lora_r2"),
        *(f"dataset.source.messages={conversations}", f"runs_dir={folder}/runs", "trainer.validation_size=4"),
        *(f"trainer.max_steps={STEPS}", f"trainer.save_steps={SAVED}", "trainer.batch_size=2", "trainer.max_length=64"),
        f"trainer.eval_steps={STEPS}",
    ]


def _wait_for_checkpoint(process: "subprocess.Popen[str]", folder: Path, out: IO[str]) -> None:
    """Raises ValueError, with the last line that the process printed, if no checkpoint comes."""
    end = time.monotonic() + PATIENCE
    while not _checkpoints(folder):
        if process.poll() is not None or time.monotonic() > end:
            raise ValueError(f"the first start wrote no checkpoint: {last_line(out) or 'it printed nothing'}")
        time.sleep(0.05)


def _checkpoints(folder: Path) -> list[int]:
    """The steps of the complete checkpoints."""
    files = folder.glob("runs/*/*/*/checkpoints/checkpoint-*/trainer_state.json")
    return [int(file.parent.name.rpartition("-")[2]) for file in files]

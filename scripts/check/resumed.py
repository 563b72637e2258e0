"""A training of SmolLM2 that is killed after a checkpoint, and started again."""

import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS, SAVED = 6, 2  # of the run, and between checkpoints
PATIENCE = 300  # seconds for a checkpoint to come


def killed_and_resumed() -> str:
    """Train, kill after the first checkpoint, train again. Raises ValueError if the run is not finished then."""
    with tempfile.TemporaryDirectory() as folder:
        command = _command(Path(folder))
        first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _wait_for_checkpoint(first, Path(folder))
        first.kill()
        first.wait()
        second = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
        if second.returncode != 0:
            raise ValueError(f"the second start failed: {second.stderr.strip().splitlines()[-1]}")
        [done] = Path(folder).glob("runs/*/*/*/run.json")
        losses = json.loads(done.read_text(encoding="utf-8"))["metrics"]
    if not math.isfinite(losses["loss"]):
        raise ValueError(f"the loss after the resume is {losses['loss']}.")
    return f"SmolLM2, {STEPS} steps, killed after {SAVED}; loss {losses['first_loss']:.2f} to {losses['loss']:.2f}"


def _command(folder: Path) -> list[str]:
    conversations = folder / "messages.jsonl"
    asked = [{"role": "user", "content": "What is {0} plus {0}?"}, {"role": "assistant", "content": "It is {1}."}]
    rows = [
        {"messages": [{**m, "content": m["content"].format(number, 2 * number)} for m in asked]} for number in range(64)
    ]
    conversations.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [
        *(sys.executable, "-m", "scripts.train", "profile=smol", "method=lora_r2", "wandb.project=gpu-check"),
        *(f"dataset.source.messages={conversations}", f"runs_dir={folder}/runs", "trainer.validation_size=4"),
        *(f"trainer.max_steps={STEPS}", f"trainer.save_steps={SAVED}", "trainer.batch_size=2", "trainer.max_length=64"),
    ]


def _wait_for_checkpoint(process: subprocess.Popen[bytes], folder: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not list(folder.glob("runs/*/*/*/checkpoints/checkpoint-*/trainer_state.json")):
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            raise ValueError("the first start wrote no checkpoint; run python -m scripts.train to see why.")
        time.sleep(0.05)

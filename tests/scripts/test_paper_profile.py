"""The profile `paper`, all settings as they are, to a rendered Table 2 on a CPU: a tiny model, and two steps."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from scripts.config import compose

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
METHODS = ("lora_r2", "mos_minus_sp_r16")  # MoS with private ranks needs more blocks than two
DATASETS = ("super_ni", "flan_v2", "cot", "code_alpaca")


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    """A random Llama of two blocks, with the context of LLaMA2."""
    folder = tmp_path / "llama"
    AutoModelForCausalLM.from_pretrained(tiny_checkpoint, max_position_embeddings=4096).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(folder)
    return folder


@pytest.fixture
def conversations(tmp_path):
    """More than the 1,024 examples of the validation set, with lengths up to the limit of 512 tokens."""
    path = tmp_path / "messages.jsonl"
    rows = [
        [{"role": "user", "content": f"Count to {n}."}, {"role": "assistant", "content": "one " * (1 + n % 90)}]
        for n in range(1100)
    ]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.slow
def test_it_comes_to_a_table_on_a_cpu(checkpoint, conversations, tmp_path):
    folders = [f"{name}_dir={tmp_path / name}" for name in ("runs", "cache", "results")]
    changed = [
        *("table=table2", f"methods=[{','.join(METHODS)}]", "models={7b: local}", f"++model.source.path={checkpoint}"),
        *(f"data={FIXTURES}", f"dataset.source.messages={conversations}", "limit=1", *folders),
        *("trainer.max_steps=2", "gpus_per_run=0", "engine=hf"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "scripts.tables", "profile=paper", *changed],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "ok    adapters and engine: " in done.stderr
    found = sorted((tmp_path / "runs" / "paper" / "local").glob("*/run.json"))
    assert len(found) == len(METHODS) * len(DATASETS) * 2
    expected = compose(["profile=paper"])
    for run in found:
        trainer = OmegaConf.load(run.with_name("config.yaml")).trainer
        assert trainer == OmegaConf.merge(expected.trainer, {"max_steps": 2})
    table = (tmp_path / "results" / "paper").rglob("table2.md")
    text = next(table).read_text(encoding="utf-8")
    assert "Seeds: 0, 1" in text
    assert "| LoRA | 2 | measured |" in text and "| MoS -sp | 16 (of 16/32) | measured |" in text
    assert "Failed" not in text
    [predictions] = list(found[0].parent.glob("eval/humaneval-*/predictions.jsonl"))[:1] or [None]
    if predictions:
        assert len(json.loads(predictions.read_text(encoding="utf-8").splitlines()[0])["outputs"]) == 20

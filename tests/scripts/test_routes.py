"""Every method trained on the 4-bit SmolLM2 answers the same by every route: adapter, merged, exported to vLLM."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from data_prep.chat import user_prompt
from eval.engines import Decoding
from scripts.cell import base_model, runs
from scripts.cell.served import exported_folder, served
from scripts.config import ROOT, compose
from tests.asked import asked
from tests.ties import gap_at_parting

pytest.importorskip("vllm")

METHODS = ["lora_r2", "vera_r256", "tied_lora_r280", "prolora_r8", "mos_r8", "mos_r16", "random_scaling"]
DATA = ROOT.parent / "shared" / "data"
PROMPTS = [user_prompt(f"Write a Python function that adds {n} to each number of a list.\n", "") for n in range(2, 22)]
SETTINGS = {"max_steps": 20, "batch_size": 2, "max_length": 128, "validation_size": 8, "learning_rate": 2e-3}
TIE = 2e-3  # logits of size 10 to 20 in float32, summed in another order by each engine


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not here: the methods are trained on its CodeAlpaca file")
    folder = tmp_path_factory.mktemp("routes")
    places = [f"runs_dir={folder / 'runs'}", f"cache_dir={folder / 'cache'}", f"data={DATA}"]
    return ["profile=smol", "dataset=code_alpaca", *places, *(f"trainer.{k}={v}" for k, v in SETTINGS.items())]


@pytest.fixture(scope="module")
def trained(overrides: list[str]) -> dict[str, runs.Run]:
    command = [sys.executable, "-m", "scripts.train", "-m", f"method={','.join(METHODS)}", *overrides]
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"WANDB_MODE": "disabled"})
    return {name: runs.load(runs.run_dir(compose([*overrides, f"method={name}"]))) for name in METHODS}


@pytest.fixture(scope="module")
def base(overrides: list[str]) -> Path:
    cfg = compose(overrides)
    return base_model.dequantized_checkpoint(cfg.model, cfg.trainer, cfg.cache_dir)


@pytest.mark.slow
def test_the_adapter_the_merged_model_and_vllm_give_the_same_text(
    trained: dict[str, runs.Run], base: Path, tmp_path: Path
) -> None:
    from eval.engines.hf import HfEngine
    from eval.engines.vllm import VllmEngine

    decoding = Decoding(24)
    folders = {
        name: {served(run.adapter, exported_folder(run), engine) for engine in ("vllm", "hf")}
        for name, run in trained.items()
    }  # MoS as it was trained, too
    assert [len(own) for own in folders.values()] == [1, 1, 1, 1, 2, 2, 2]
    vllm = VllmEngine(
        base,
        [folder for own in folders.values() for folder in own],
        dtype="float32",
        max_model_len=512,
        cpu_kv_cache_gib=1,
    )
    untrained = dict(vllm.generate(asked(PROMPTS), decoding))
    for name, run in trained.items():
        adapted = HfEngine(base, [run.adapter], dtype="float32", max_model_len=512)
        merge(base, run.adapter, tmp_path / name)
        merged = HfEngine(tmp_path / name, dtype="float32", max_model_len=512)
        expected = dict(adapted.generate(asked(PROMPTS, run.adapter), decoding))
        assert expected != untrained, f"{name} changes nothing"
        for route in (
            merged.generate(asked(PROMPTS), decoding),
            *(vllm.generate(asked(PROMPTS, folder), decoding) for folder in folders[name]),
        ):
            for index, texts in route:
                if texts != expected[index]:
                    parted = (PROMPTS[index], texts[0], expected[index][0])
                    assert gap_at_parting(merged.model, merged.tokenizer, *parted) < TIE, (name, *parted)


def merge(base: Path, adapter: Path, folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    PeftModel.from_pretrained(model, adapter).merge_and_unload(safe_merge=True).save_pretrained(folder)
    for file in base.glob("*token*"):
        (folder / file.name).write_bytes(file.read_bytes())

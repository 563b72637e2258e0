"""The plan of a table: cells, memory, time, warnings, and the memory model against real training steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import scripts.plan
from scripts.cell import base_model
from scripts.cell.shapes import meta_model
from scripts.config import compose
from scripts.cost import formulas, plan_text
from scripts.cost.architecture import Adapter, Architecture
from scripts.cost.parameters import adapter
from scripts.cost.plan import Plan, plan
from scripts.cost.workload import mean_length, plan_tokenizer, workload

PAPER = ["profile=paper", "model=llama2_7b", "table=table2", "seeds=[0]"]


def planned(*overrides: str) -> tuple[Plan, str]:
    cfg = compose([*PAPER, *overrides])
    found = plan(cfg, [*PAPER, *overrides])
    return found, plan_text.render(cfg, found)


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns for path in folder.rglob("*")}


def test_plan_counts_cells_memory_and_time() -> None:
    found, text = planned("methods=[vanilla_chat,lora_r2]", "gpus=[a100_40g]")
    assert sorted(found.cells.dataset) == ["-", "code_alpaca", "cot", "flan_v2", "super_ni"]
    (line,) = found.memory.to_dict("records")
    assert line["params"] == 4_997_120
    assert line["A100-40G"] == "fits"
    hours = found.cells.set_index("dataset")["A100-40G training h"]
    cfg = compose([*PAPER, "method=lora_r2"])
    model, added = Architecture.of(meta_model(cfg.model)), adapter(cfg)
    assert added is not None
    flops = formulas.training_flops(model, added, tokens=10_000 * 16 * 512, length=512, checkpointing=True)
    assert hours["cot"] == pytest.approx(flops / (0.35 * 312e12) / 3600)
    assert hours["-"] == 0
    assert "Total on one A100-40G: 5 cells" in text


def test_plan_warns_of_a_gpu_that_is_too_small_and_of_vera_at_the_matched_budget() -> None:
    found, text = planned("methods=[lora_r2,vera_r256]", "gpus=[a100_40g,tiny:8:100]")
    assert "WARNING: lora_r2 needs" in text
    assert "does not fit on tiny" in text
    assert "needs rank 16,237" in text
    assert any("without checkpointing" in caution and "A100-40G does NOT fit" in caution for caution in found.cautions)


def test_a_whole_pool_has_the_rank_of_its_size() -> None:
    added = adapter(compose([*PAPER, "method=pure_sharing"]))
    assert added is not None
    assert (added.rank, added.trainable) == (64, 4_997_120)


def test_missing_data_falls_back_to_the_published_size(tmp_path: Path) -> None:
    cfg = compose([*PAPER, f"data={tmp_path}", "limit=100"])
    assert workload(cfg, "gsm8k", tokenizer=object()).items == 100
    assert mean_length(cfg, compose([*PAPER, "dataset=cot"]).dataset, tokenizer=None) == 512


def test_lengths_that_nobody_has_published_count_as_the_longest(caplog: pytest.LogCaptureFixture) -> None:
    unknown = "benchmark.gsm8k.published={items:1319,prompt_tokens:null,longest_prompt_tokens:null}"
    found, _ = planned("methods=[lora_r2]", unknown)
    (line,) = found.evaluation[found.evaluation.benchmark == "gsm8k"].to_dict("records")
    assert line["prompt"] == line["longest"] == 4096 - line["new"]
    assert "gsm8k: nobody has published how long its prompts are" in caplog.text


@pytest.mark.parametrize("model", ["qwen3_0_6b", "llama3_2_1b", "phi3_mini"])
def test_a_model_of_another_family_has_a_plan_for_every_method(model: str) -> None:
    """Phi 3 has no q_proj that a method could name."""
    found, _ = planned(f"model={model}", "candidates=1", "gpus=[a100_40g]")
    assert set(found.memory.method) >= {"lora_r2", "vera_r256", "tied_lora_r280", "mos_r16"}
    assert (found.memory.peak > found.memory.weights + found.memory.embeddings).all()
    assert (found.memory["A100-40G"] == "fits").all()


def test_a_folder_plays_the_7b_of_a_plan(tiny_checkpoint: Path, tmp_path: Path) -> None:
    overrides = ["profile=micro", "table=table2", "methods=[lora_r2]", "data=null", f"cache_dir={tmp_path}"]
    overrides += ["model=local", f"model.source.path={tiny_checkpoint}"]
    found = plan(compose(overrides), overrides)
    assert list(found.memory.params) == [2 * 2 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))]


def test_the_plan_of_the_micro_profile_trains_nothing_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a plan asked for a base model")

    monkeypatch.setattr(base_model, "checkpoint", refuse)
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "fingerprints.json").write_text("{}")
    before = files(tmp_path)
    overrides = ["profile=micro", "model=micro_7b", "table=table2", "methods=[mos_r8]"]
    overrides += [f"cache_dir={cache}", f"runs_dir={tmp_path / 'runs'}"]
    found = plan(compose(overrides), overrides)
    assert files(tmp_path) == before
    assert found.evaluation.set_index("benchmark").prompt["gsm8k"] > 10
    assert 0 < found.cells["A100-40G training h"].min() < 1


def test_the_tokenizer_of_a_plan_is_that_of_the_base_model(tiny_checkpoint: Path) -> None:
    text = "Some words, numbers 12 and signs!"
    smol = plan_tokenizer(compose(["profile=smol", "data=somewhere"]))
    assert smol.decode(smol(text).input_ids) == text
    local = compose(["data=somewhere", "model=local", f"model.source.path={tiny_checkpoint}"])
    assert plan_tokenizer(local)(text).input_ids[0] == 1  # as LLaMA2: `<s>` in front
    elsewhere = compose(["data=somewhere", "model=llama2_7b", "model.source.repo=nobody/nothing"])
    assert plan_tokenizer(elsewhere)(text).input_ids == smol(text).input_ids  # stands in
    assert plan_tokenizer(compose(["profile=smol"])) is None
    assert len(plan_tokenizer(compose(["profile=micro"]))) == 1107


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hidden", "inner", "blocks", "vocab", "rank", "batch", "length", "checkpointing"),
    [
        (512, 1376, 8, 8_000, 8, 4, 128, False),
        (768, 2048, 12, 32_000, 16, 4, 256, True),
        (768, 2048, 12, 8_000, 64, 4, 256, False),
        (1024, 2752, 16, 8_000, 64, 2, 256, True),
        (1024, 2752, 8, 32_000, 2, 8, 256, True),
    ],
)
def test_memory_model_against_a_measured_peak(
    hidden: int, inner: int, blocks: int, vocab: int, rank: int, batch: int, length: int, checkpointing: bool
) -> None:
    sizes = {
        "model_type": "llama", "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": blocks, "num_attention_heads": 8, "num_key_value_heads": 8,
    }  # fmt: skip
    network = meta_model(OmegaConf.create({"name": "random", "source": {"kind": "hub"}, "architecture": sizes}))
    model = Architecture.of(network)
    added = Adapter(rank * Adapter(0, rank, model.linears).width, rank, model.linears)
    step = {"batch": batch, "length": length, "checkpointing": checkpointing}
    expected = formulas.training_memory(model, added, double_quantization=True, **step).peak
    script = Path(__file__).with_name("peak_memory.py")
    measured = subprocess.run(
        [sys.executable, script, json.dumps({"architecture": sizes, "rank": rank, **step})],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert expected == pytest.approx(int(measured.stdout.split()[-1]), rel=0.25)


def test_a_folder_plays_the_7b_of_the_command(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ["models={7b: local}", f"++model.source.path={tiny_checkpoint}", f"cache_dir={tmp_path}"]
    table = ["profile=micro", "table=table2", "methods=[lora_r2]", "data=null"]
    monkeypatch.setattr(sys, "argv", ["plan", *table, *folder])
    scripts.plan.main()
    assert "plan for profile micro, local" in capsys.readouterr().out

"""The plan of a table: GPUs, cells, warnings, and the memory model against real training steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.config import compose
from scripts.cost import formulas as costs
from scripts.cost import plan
from scripts.cost.formulas import Adapter, Architecture

PAPER = ["profile=paper", "model=llama2_7b", "table=table2", "seeds=[0]"]


def planned(*overrides: str) -> tuple[plan.Plan, str]:
    cfg = compose([*PAPER, *overrides])
    found = plan.plan(cfg, [*PAPER, *overrides])
    return found, plan.render(cfg, found)


def test_a_gpu_by_numbers_assumes_the_shares_of_the_a100() -> None:
    own, known = plan.Gpu.of("mine:24:165"), plan.Gpu.of("a100_40g")
    assert (own.name, own.memory_gib, own.tflops) == ("mine", 24, 165)
    assert (own.training, own.decode) == (known.training, known.decode)
    assert own.hours(training=165e12 * 3600 * own.training) == pytest.approx(1)


@pytest.mark.parametrize("text", ["a100", "mine:24", "mine:24:fast"])
def test_an_unknown_gpu_is_refused_with_the_way_out(text: str) -> None:
    with pytest.raises(ValueError, match=r"name:GiB:TFLOPs"):
        plan.Gpu.of(text)


def test_plan_counts_cells_memory_and_time() -> None:
    found, text = planned("methods=[vanilla_chat,lora_r2]", "gpus=[a100_40g]")
    assert list(found.cells.dataset) == ["-", "code_alpaca", "cot", "flan_v2", "super_ni"]
    (line,) = found.memory.to_dict("records")
    assert line["params"] == 4_997_120
    assert line["A100-40G"] == "fits"
    hours = found.cells.set_index("dataset")["A100-40G training h"]
    model, added = (
        Architecture.of(compose(PAPER).model.architecture),
        plan.adapter(compose([*PAPER, "method=lora_r2"])),
    )
    assert added is not None
    flops = costs.training_flops(model, added, tokens=10_000 * 16 * 512, length=512, checkpointing=True)
    assert hours["cot"] == pytest.approx(flops / (0.35 * 312e12) / 3600)
    assert hours["-"] == 0
    assert "Total on one A100-40G: 5 cells" in text


def test_plan_warns_of_a_gpu_that_is_too_small_and_of_vera_at_the_matched_budget() -> None:
    found, text = planned("methods=[lora_r2,vera_r256]", "gpus=[a100_40g,tiny:8:100]")
    assert "WARNING: lora_r2 needs" in text
    assert "does not fit on tiny" in text
    assert "needs rank 16,237" in text
    assert any("without checkpointing" in warning and "A100-40G does NOT fit" in warning for warning in found.warnings)


def test_a_whole_pool_has_the_rank_of_its_size() -> None:
    added = plan.adapter(compose([*PAPER, "method=pure_sharing"]))
    assert added is not None
    assert (added.rank, added.trainable) == (64, 4_997_120)


def test_missing_data_falls_back_to_the_published_size(tmp_path: Path) -> None:
    cfg = compose([*PAPER, f"data={tmp_path}", "limit=100"])
    assert plan.workload(cfg, "gsm8k", tokenizer=object()).items == 100
    assert plan.mean_length(cfg, compose([*PAPER, "dataset=cot"]).dataset, tokenizer=None) == 512


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
    architecture = {
        "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": blocks,
        "num_attention_heads": 8, "num_key_value_heads": 8,
    }  # fmt: skip
    model = Architecture.of(architecture)
    added = Adapter(blocks * rank * sum(i + o for i, o in model.linears.values()), rank, tuple(model.linears))
    step = {"batch": batch, "length": length, "checkpointing": checkpointing}
    expected = costs.training_memory(model, added, double_quantization=True, **step).peak
    script = Path(__file__).with_name("peak_memory.py")
    measured = subprocess.run(
        [sys.executable, script, json.dumps({"architecture": architecture, "rank": rank, **step})],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert expected == pytest.approx(int(measured.stdout.split()[-1]), rel=0.25)

"""Disk and memory that a table takes: formulas by hand, and real folders."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from scripts.cell import base_model, runs, training
from scripts.cell.served import exported_folder, served
from scripts.cell.shapes import meta_model
from scripts.config import compose
from scripts.cost import cautions, disk
from scripts.cost.architecture import Adapter, Architecture
from scripts.cost.disk import Need
from scripts.cost.parameters import adapter
from scripts.cost.plan import plan

GIB = 2**30
PAPER = ["profile=paper", "model=llama2_7b", "table=table2", "seeds=[0]", "methods=[vanilla_chat,lora_r2,mos_r8]"]
LOOK_UP = "huggingface_hub.try_to_load_from_cache"


@pytest.fixture
def places(tmp_path: Path) -> list[str]:
    return [f"cache_dir={tmp_path / 'cache'}", f"runs_dir={tmp_path / 'runs'}"]


def size(folder: Path) -> int:
    """Bytes of the tensors in a folder; names and shapes weigh much only in so small a model."""
    tensors = [tensor for path in folder.rglob("*.safetensors") for tensor in load_file(path).values()]
    return sum(tensor.nbytes for tensor in tensors)


def needs(*overrides: str) -> dict[str, float]:
    found = plan(compose([*PAPER, *overrides]), [*PAPER, *overrides])
    return {line["purpose"]: line["GiB"] * GIB for line in found.disk.to_dict("records")}


def test_forms_of_llama2_by_hand() -> None:
    model = Architecture.of(meta_model(compose(["model=llama2_7b"]).model))
    forms = disk.converted_bytes(model, double_quantization=True)
    assert forms["published"] == forms["dequantized"] == 2 * 6_738_415_616
    assert forms["4bit"] == pytest.approx(6_476_005_376 * 4.127 / 8 + 2 * 262_410_240, rel=1e-4)
    large = Architecture.of(meta_model(compose(["model=llama2_13b"]).model))
    assert disk.converting_bytes(large) == pytest.approx(40e9, rel=0.03)  # measured: some 40 GB


def test_adapters_by_hand() -> None:
    added = adapter(compose(["model=llama2_7b", "method=mos_r8"]))
    assert added is not None
    assert disk.adapter_bytes(added) == pytest.approx(4 * 4_997_120, rel=0.01)  # and the frozen scales
    assert disk.checkpoint_bytes(added) == pytest.approx(12 * 4_997_120, rel=0.01)
    assert disk.export_bytes(added) == 4 * 4 * 4_997_120  # rank 8 on the budget of LoRA 2: four times its size
    vera = Adapter(trainable=10, rank=2, layers=(), frozen=100)
    assert (disk.adapter_bytes(vera), disk.checkpoint_bytes(vera)) == (4 * 110, 4 * 110 + 8 * 10)


def test_plan_lists_what_is_still_to_be_written(places: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOOK_UP, lambda *args, **kwargs: None)
    found = needs(*places, "workers=2")
    assert found["copies from the hub (HF_HOME)"] == 2 * 6_738_415_616
    assert found["adapters"] == pytest.approx(2 * 4 * 4 * 4_997_120, rel=0.01)  # two methods on four training sets
    assert found["checkpoints while training"] == pytest.approx(2 * 2 * 12 * 4_997_120, rel=0.01)
    assert found["adapters as LoRA"] == pytest.approx(4 * 4 * 4_997_120)  # vLLM takes MoS as it was trained
    with_hf = needs(*places, "workers=2", "engine=hf")["adapters as LoRA"]
    assert with_hf == pytest.approx(4 * (1 + 4) * 4 * 4_997_120)


def test_what_is_there_is_not_needed_again(places: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = compose([*PAPER, *places])
    folders = base_model.folders(cfg.model, cfg.trainer, cfg.cache_dir)
    before = needs(*places)["converted models"]
    folders["dequantized"].mkdir(parents=True)
    assert needs(*places)["converted models"] == before - 2 * 6_738_415_616
    config = tmp_path / "config.json"
    config.write_text("{}")
    monkeypatch.setattr(LOOK_UP, lambda *args, **kwargs: str(config))
    assert needs(*places)["copies from the hub (HF_HOME)"] > 0  # a config without weights
    config.with_name("model.safetensors").touch()
    assert needs(*places)["copies from the hub (HF_HOME)"] == 0


def test_a_real_cell_takes_what_the_formulas_say(tiny) -> None:
    cfg = tiny("method=mos", "method.r=3", "trainer.compute_dtype=bfloat16")
    path = training.train(cfg)
    added, run = adapter(cfg), runs.load(path)
    indices = size(path / "adapter") - disk.adapter_bytes(added)
    assert 0 <= indices < 0.2 * disk.adapter_bytes(added)  # integers that pick the shards, which the formula leaves out
    assert size(served(run.adapter, exported_folder(run), "hf")) == disk.export_bytes(added)
    base_model.dequantized_checkpoint(cfg.model, cfg.trainer, cfg.cache_dir)
    forms = disk.converted_bytes(Architecture.of(meta_model(cfg.model)), double_quantization=True)
    folders = base_model.folders(cfg.model, cfg.trainer, cfg.cache_dir)
    pad_rows = 2 * 64  # the published folder has one more row in its embeddings and in its head
    assert size(folders["published"]) == 4 * (forms["published"] / 2 + pad_rows)  # it was saved in float32
    assert size(folders["4bit"]) == pytest.approx(forms["4bit"], rel=0.25)  # a code book per layer
    assert size(folders["dequantized"]) == forms["dequantized"] + 2 * pad_rows


def test_a_disk_that_is_too_small_is_named_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10 * GIB))
    one, other = Need("a", tmp_path / "new" / "runs", 6 * GIB), Need("b", tmp_path / "cache", 5 * GIB)
    (sentence,) = disk.shortages([one, other])  # on one disk: together too much
    assert "10 GiB free, but 11 are needed" in sentence
    assert "HF_HOME" in sentence
    assert str(one.folder) in sentence
    assert list(disk.shortages([one])) == []
    assert list(disk.shortages([])) == []


def test_too_little_memory_to_convert_is_named(places: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cautions.os, "sysconf", lambda name: 2**15)  # 2^15 pages of 2^15 bytes: 1 GiB
    found = plan(compose([*PAPER, *places]), [*PAPER, *places])
    [said] = [caution for caution in found.cautions if caution.startswith("Converting")]
    assert said.startswith("Converting llama2_7b takes about 19 GiB of memory, and this machine has 1")
    cache = compose([*PAPER, *places]).cache_dir
    assert said.endswith(f"copy its folders in {cache}/models.")  # not in the plan's own, which is gone by then

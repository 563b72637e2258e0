"""The key of a run changes with all that determines its result and with nothing else; files appear whole or not."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from data_prep import storage
from scripts.cell import runs
from scripts.cell.provenance import provenance
from scripts.config import compose
from scripts.profile import default_profile


def test_the_name_says_method_rank_dataset_and_seed(tiny, tmp_path):
    path = runs.run_dir(tiny())
    assert path.parent == tmp_path / "runs" / "smol" / "tiny"
    assert path.name.startswith("lora-r4-cot-seed0-")
    assert len(path.name.rpartition("-")[2]) == 8
    assert runs.name(compose(["method=pure_sharing"])) == "pure_sharing-rall-cot-seed0"
    assert runs.name(compose(["method=vanilla_chat", "seed=3"])) == "vanilla_chat-r0-none-seed3"


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "method.r=8",
        "method.alpha=8",
        "dataset=code_alpaca",
        "trainer.max_steps=13",
        "trainer.max_length=65",
        "trainer.validation_size=9",
        "trainer.quantization.double_quantization=false",
        "trainer.compute_dtype=float32",
        "method=mos",
    ],
)
def test_the_key_changes_with_what_determines_the_result(tiny, override):
    assert key(tiny(override)) != key(tiny())


@pytest.mark.parametrize(
    "override",
    [
        "trainer.eval_steps=1",
        "trainer.save_steps=1",
        "trainer.logging_steps=1",
        "method.label=other",
        "limit=3",
        "table=table1",
        "wandb.project=other",
        "evaluation.max_new_tokens=5",
    ],
)
def test_the_key_does_not_change_with_the_rest(tiny, override):
    assert key(tiny(override)) == key(tiny())


def test_the_key_follows_the_content_of_local_files_not_their_place(tiny, tiny_checkpoint, conversations, tmp_path):
    model, data = tmp_path / "model", tmp_path / "elsewhere" / conversations.name
    shutil.copytree(tiny_checkpoint, model)
    data.parent.mkdir()
    shutil.copy(conversations, data)
    moved = tiny(f"model.source.path={model}", f"dataset.source.messages={data}")
    assert key(moved) == key(tiny())
    data.write_text(data.read_text() * 2)
    assert key(moved) != key(tiny())
    changed = tiny(f"model.source.path={model}")
    (model / "config.json").write_text((model / "config.json").read_text() + "\n")
    assert key(changed) != key(tiny())


def test_raw_files_of_a_local_folder_count_and_missing_ones_do_not_stop_a_plan(tiny, tmp_path):
    def cell():
        return tiny("dataset.source.messages=null", f"data={tmp_path}")

    missing = key(cell())
    folder = tmp_path / "train" / "cot"
    folder.mkdir(parents=True)
    for name in ("cot_zsopt.jsonl", "cot_fsopt.jsonl"):
        (folder / name).write_text("{}\n")
    there = key(cell())
    (folder / "cot_fsopt.jsonl").write_text('{"a": 1}\n')
    assert len({missing, there, key(cell())}) == 3


def test_a_vanilla_run_does_not_depend_on_the_training(tiny_cell, tmp_path):
    def cell(*overrides):
        lean = [override for override in tiny_cell if not override.startswith("method")]
        return compose([*lean, "method=vanilla_chat", *overrides])

    assert key(cell("trainer.max_steps=5", "dataset=flan_v2")) == key(cell())
    assert key(cell("trainer.compute_dtype=float32")) != key(cell())


def test_a_local_model_that_is_not_there_is_named(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"model.source.path: {tmp_path} holds no checkpoint"):
        runs.run_dir(tiny(f"model.source.path={tmp_path}"))


def test_loading_a_run_that_is_not_finished_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a finished run; train it first"):
        runs.load(tmp_path)


def test_a_file_is_replaced_whole_and_a_failure_leaves_the_old_one(tmp_path):
    path = tmp_path / "value.json"
    storage.write_json(path, {"a": [1, "é"]})
    assert json.loads(path.read_text()) == {"a": [1, "é"]}
    with pytest.raises(TypeError):
        storage.write_json(path, {"a": object()})
    with pytest.raises(UnicodeEncodeError):
        storage.write_text(path, "half \ud800")
    assert json.loads(path.read_text()) == {"a": [1, "é"]}
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "made"
    with pytest.raises(RuntimeError, match="broken"), storage.new_folder(path) as folder:
        (folder / "part").write_text("half")
        raise RuntimeError("broken")
    assert list(tmp_path.iterdir()) == []
    for content in ("first", "second"):
        with storage.new_folder(path) as folder:
            (folder / "part").write_text(content)
    assert (path / "part").read_text() == "second"
    assert list(tmp_path.iterdir()) == [path]


def test_provenance_names_versions_revision_and_hardware():
    found = provenance()
    assert found["versions"]["torch"] == torch.__version__
    assert found["git"] is None or len(found["git"].removesuffix("+changes")) == 40
    assert found["hardware"]["torch_threads"] == torch.get_num_threads()
    assert found["hardware"]["cpu"]


@pytest.mark.parametrize(("gib", "profile"), [(None, "micro"), (16, "micro"), (40, "paper")])
def test_the_default_profile_follows_the_gpu_and_is_said(monkeypatch, capsys, gib, profile):
    gpu = SimpleNamespace(name="GPU X", total_memory=(gib or 0) * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gib is not None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    assert default_profile() == profile
    assert f"profile '{profile}'" in capsys.readouterr().err


def key(cfg):
    return runs.run_dir(cfg).name.rpartition("-")[2]

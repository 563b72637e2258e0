"""The packed form is the same adapter, read from fewer tensors, and never an earlier one."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file, save_file

from mos_vllm.adapter import AdapterError
from mos_vllm.pack import main, pack
from mos_vllm.reading import PACKED, WEIGHTS, is_current, read
from tests.mos_vllm.make import save_adapter

SETTINGS = {
    "all types": {},
    "random scales": {"random_scaling": True, "target_modules": ["q_proj", "up_proj"]},
    "pure sharing": {"r": None, "private_rank": 0, "shards_per_vector": 1, "target_modules": ["k_proj"]},
    "one block": {"layers_to_transform": [5], "equivalent_rank": 8},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    return {name: save_adapter(root / str(i), **settings) for i, (name, settings) in enumerate(SETTINGS.items())}


@pytest.fixture
def adapter(saved, tmp_path):
    return shutil.copytree(saved["all types"], tmp_path / "adapter")


def assert_equal(one, other):
    assert one.alpha == other.alpha and len(one.pools) == len(other.pools)
    for left, right in zip(one.pools, other.pools, strict=True):
        assert left.modules == right.modules
        assert torch.equal(left.a, right.a) and torch.equal(left.b, right.b) and torch.equal(left.index, right.index)
        assert (left.scale is None) == (right.scale is None)
        assert left.scale is None or torch.equal(left.scale, right.scale)


@pytest.mark.parametrize("name", SETTINGS)
def test_packed_and_saved_are_one_adapter(saved, tmp_path, name):
    folder = shutil.copytree(saved[name], tmp_path / "adapter")
    before = read(folder)
    assert pack(folder) and not pack(folder)
    assert_equal(read(folder), before)
    (folder / WEIGHTS).unlink()  # alone it is as good
    assert_equal(read(folder), before)


def test_the_packed_form_holds_few_tensors_and_is_what_is_read(adapter, monkeypatch):
    pack(adapter)
    with safe_open(adapter / PACKED, framework="pt") as file:
        assert len(file.keys()) == 3 * 7
    seen = []
    monkeypatch.setattr("mos_vllm.reading.load", lambda data: seen.append(len(data)) or load(data))
    read(adapter)
    assert seen == [(adapter / PACKED).stat().st_size]


def double(adapter):
    """Train on: other pools in a file of the same size."""
    before = (adapter / WEIGHTS).stat()
    tensors = {
        key: value * 2 if key.endswith("mos_A") else value for key, value in load_file(adapter / WEIGHTS).items()
    }
    save_file(tensors, adapter / WEIGHTS, metadata={"format": "pt"})
    os.utime(adapter / WEIGHTS, ns=(before.st_mtime_ns + 1, before.st_mtime_ns + 1))


def test_a_packed_form_of_earlier_weights_is_left_aside_and_written_anew(adapter):
    pack(adapter)
    before = read(adapter)
    double(adapter)
    assert torch.equal(read(adapter).pools[0].a, before.pools[0].a * 2)
    assert pack(adapter)
    assert torch.equal(read(adapter).pools[0].a, before.pools[0].a * 2)


@pytest.mark.parametrize("content", [b"", b"x" * 100])
def test_a_damaged_packed_form_beside_the_weights_does_no_harm(adapter, content):
    before = read(adapter)
    (adapter / PACKED).write_bytes(content)
    assert_equal(read(adapter), before)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"format": "other"}, "format"),
        ({"modules": "{"}, "does not name its layers"),
        ({"modules": "[1]"}, "does not name its layers"),
        ({"modules": '[["a"]]'}, "not all of one shape"),
        ({"modules": "[[]]"}, "order of their blocks"),
        ({"modules": "[]"}, "order of their blocks"),
        ({"modules": "[" * 100_000 + "]" * 100_000}, "cannot be read"),
        ({"modules": '[["m.1.q", "m.0.q"]]'}, "order of their blocks"),
        ({"modules": '[["m.0.q", "m.0.q"]]'}, "order of their blocks"),
        ({"modules": '[["m.0.q"], ["m.1.q"]]'}, "order of their blocks"),
        ({"modules": '[["m.0.q", "m.1.k"]]'}, "order of their blocks"),
        ({"modules": None}, "does not name its layers"),
    ],
)
def test_a_damaged_packed_form_alone_is_refused(adapter, metadata, said):
    pack(adapter)
    with safe_open(adapter / PACKED, framework="pt") as file:
        changed = {key: value for key, value in (file.metadata() | metadata).items() if value is not None}
    save_file(load_file(adapter / PACKED), adapter / PACKED, metadata=changed)
    (adapter / WEIGHTS).unlink()
    with pytest.raises(AdapterError, match=said):
        read(adapter)


def test_a_packed_form_without_a_tensor_is_refused(adapter):
    pack(adapter)
    with safe_open(adapter / PACKED, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(adapter / PACKED)
    del tensors["3.B"]
    save_file(tensors, adapter / PACKED, metadata=metadata)
    (adapter / WEIGHTS).unlink()
    with pytest.raises(AdapterError, match="lacks tensors"):
        read(adapter)


def test_a_packed_adapter_of_too_high_a_rank_is_refused(adapter):
    pack(adapter)
    with pytest.raises(AdapterError, match="r=8"):
        read(adapter, max_rank=4)


def test_the_command_packs_what_it_can_and_says_the_rest(adapter, tmp_path, capsys):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "adapter_config.json").write_text("{", encoding="utf-8")
    assert main([str(adapter), str(tmp_path / "broken"), str(tmp_path / "none")]) == 1
    shown = capsys.readouterr()
    assert shown.out == f"{adapter}: packed\n"
    assert "is not JSON" in shown.err and "holds no adapter_config.json" in shown.err
    assert main([str(adapter)]) == 0


def test_the_command_is_run_as_documented(adapter):
    subprocess.run([sys.executable, "-m", "mos_vllm.pack", str(adapter)], check=True, capture_output=True)
    assert (adapter / PACKED).is_file()
    assert not list(adapter.glob(".packing-*"))


def test_other_weights_of_the_same_size_and_time_are_noticed(adapter):
    """As after `cp -p`, or on a file system that rounds times."""
    pack(adapter)
    before = (adapter / WEIGHTS).stat()
    double(adapter)
    os.utime(adapter / WEIGHTS, ns=(before.st_mtime_ns, before.st_mtime_ns))
    assert not is_current(adapter / PACKED, adapter / WEIGHTS)


def test_one_odd_folder_does_not_keep_the_others_from_being_packed(adapter, tmp_path, capsys):
    odd = shutil.copytree(adapter, tmp_path / "odd")
    config = json.loads((odd / "adapter_config.json").read_text(encoding="utf-8"))
    (odd / "adapter_config.json").write_text(json.dumps(config | {"alpha": 10**400}), encoding="utf-8")
    assert main([str(odd), str(adapter)]) == 1
    assert (adapter / PACKED).is_file() and "has alpha=1000" in capsys.readouterr().err

"""Adapter folders are read as mos.export_lora reads them, and refused with one sentence where they cannot be."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import mos
from mos_vllm.adapter import AdapterError
from mos_vllm.reading import PACKED, WEIGHTS, read, stamp
from tests.mos_vllm.equations import factors
from tests.mos_vllm.make import ALL, save_adapter, tiny_llama

ROOT = "base_model.model."


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_adapter(tmp_path_factory.mktemp("saved") / "adapter")


@pytest.fixture
def adapter(saved, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(saved, tmp_path / "adapter")


def change_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def change_tensors(folder, change):
    """change: (tensors) -> None; the file is written anew."""
    tensors = load_file(folder / WEIGHTS)
    tensors = {key: value.clone() for key, value in tensors.items()}
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def first(tensors, end):
    return next(key for key in tensors if key.endswith(end))


def refusal(folder, **kwargs):
    """The sentence; reading without an error fails the test."""
    with pytest.raises(AdapterError) as error:
        read(folder, **kwargs)
    message = str(error.value)
    assert message.startswith(f"MoS adapter '{folder}' ")
    assert "\n" not in message and message.endswith(".")
    return message


@given(
    r=st.sampled_from([None, 4, 6, 8, 16]),
    shards=st.sampled_from([1, 2, 4]),
    private=st.integers(0, 1),
    random_scaling=st.booleans(),
    dissociation=st.booleans(),
    targets=st.lists(st.sampled_from(ALL), min_size=1, max_size=7, unique=True),
    blocks=st.sampled_from([None, [0, 2], [3]]),
    alpha=st.sampled_from([16, 3.5]),
)
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
def test_an_adapter_is_the_product_of_the_factors_that_the_export_writes(
    tmp_path_factory, r, shards, private, random_scaling, dissociation, targets, blocks, alpha
):
    folder = tmp_path_factory.mktemp("any")
    count = 8 if blocks is None else len(blocks)
    private = 0 if r is None else private
    equivalent = max(2, -(-(r or 0) // count) + private)  # enough public shards for r
    save_adapter(
        folder / "mos",
        seed=shards,
        r=r,
        shards_per_vector=shards,
        equivalent_rank=equivalent,
        private_rank=private,
        random_scaling=random_scaling,
        pair_dissociation=dissociation,
        target_modules=targets,
        layers_to_transform=blocks,
        alpha=alpha,
    )
    mos.export_lora(folder / "mos", folder / "lora")
    found, exported = read(folder / "mos"), load_file(folder / "lora" / WEIGHTS)
    config = json.loads((folder / "lora" / "adapter_config.json").read_text(encoding="utf-8"))
    assert found.alpha == config["lora_alpha"] == alpha
    assert len(exported) == 2 * len(factors(found)) == 2 * count * len(targets)
    for name, (a, b) in factors(found).items():
        torch.testing.assert_close(a, exported[f"{ROOT}{name}.lora_A.weight"], rtol=0, atol=0)
        torch.testing.assert_close(b, exported[f"{ROOT}{name}.lora_B.weight"], rtol=0, atol=0)


def test_sizes_are_those_of_the_paper(saved):
    """e L (h + o) parameters a layer type; ranks and widths as trained."""
    for pools in read(saved).pools:
        assert pools.a.numel() + pools.b.numel() == 2 * 8 * (pools.in_features + pools.out_features)
        assert (pools.rank, len(pools.modules), pools.scale) == (8, 8, None)


def test_blocks_are_in_the_order_of_their_numbers(tmp_path):
    folder = save_adapter(tmp_path / "many", model=tiny_llama(num_hidden_layers=12), target_modules=["q_proj"])
    [pools] = read(folder).pools
    assert pools.modules == tuple(f"model.layers.{block}.self_attn.q_proj" for block in range(12))


def test_importing_the_reader_takes_no_peft_transformers_or_mos():
    code = (
        "import sys, mos_vllm, mos_vllm.reading; "
        "print([name for name in ('peft', 'transformers', 'mos', 'vllm') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_package_alone_takes_no_torch():
    code = "import sys, mos_vllm; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_missing_folder_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[1]", "is not a JSON object"),
        (b" " * (2 << 20), "is no configuration"),
        (b'{"peft_type": "LORA"}', "peft_type='LORA'"),
        (b'{"peft_type": ["MOS"]}', "peft_type"),
        (b'{"peft_type": "MOS"}', "alpha=None"),
        (b'{"peft_type": "MOS", "alpha": "16"}', "alpha='16'"),
        (b'{"peft_type": "MOS", "alpha": NaN}', "alpha=nan"),
        (b'{"peft_type": "MOS", "alpha": 1e999}', "alpha=inf"),
        (b'{"peft_type": "MOS", "alpha": true}', "alpha=True"),
        (b'{"peft_type": "MOS", "alpha": 1' + b"0" * 400 + b"}", "no number to scale by"),
        (b'{"peft_type": "MOS", "alpha": -1e31}', "no number to scale by"),
        (b'{"peft_type": "MOS", "alpha": 1, "modules_to_save": ["' + b"x" * 100_000 + b'"]}', "modules_to_save"),
        (b'{"peft_type": "MOS", "alpha": 1, "bias": "all"}', "bias='all'"),
        (b'{"peft_type": "MOS", "alpha": 1, "modules_to_save": ["lm_head"]}', "modules_to_save"),
    ],
)
def test_a_bad_configuration_is_refused(adapter, text, said):
    (adapter / "adapter_config.json").write_bytes(text)
    assert said in refusal(adapter) and len(refusal(adapter)) < 1000


def test_a_pickle_is_not_loaded(adapter):
    """Neither under its own name nor under that of a safetensors file."""
    data = pickle.dumps({"a": torch.ones(1)})
    (adapter / WEIGHTS).unlink()
    (adapter / "adapter_model.bin").write_bytes(data)
    assert "safetensors only" in refusal(adapter)
    (adapter / WEIGHTS).write_bytes(data)
    assert "broken or truncated" in refusal(adapter)


@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(adapter, part):
    whole = (adapter / WEIGHTS).read_bytes()
    (adapter / WEIGHTS).write_bytes(whole[: int(len(whole) * part)])
    assert "broken or truncated" in refusal(adapter)


def loop(path):
    path.symlink_to(path)


ODD_FILES = {"pipe": os.mkfifo, "endless device": lambda path: path.symlink_to("/dev/zero"), "folder": Path.mkdir}


@pytest.mark.parametrize("kind", ODD_FILES)
@pytest.mark.parametrize("name", ["adapter_config.json", WEIGHTS])
def test_what_is_no_file_is_not_read(adapter, kind, name):
    """Reading a pipe waits for ever, and a device may have no end."""
    (adapter / name).unlink()
    ODD_FILES[kind](adapter / name)
    assert f"has a folder, a pipe or a device in place of {name}." in refusal(adapter)


@pytest.mark.parametrize("kind", ODD_FILES)
def test_an_odd_packed_form_is_left_aside(adapter, saved, kind):
    ODD_FILES[kind](adapter / PACKED)
    assert read(adapter).alpha == read(saved).alpha


def test_a_circle_of_links_is_refused(adapter):
    (adapter / "adapter_config.json").unlink()
    loop(adapter / "adapter_config.json")
    assert "cannot be read" in refusal(adapter)


@pytest.mark.parametrize("name", ["\0", "a" * 5000])
def test_a_path_that_no_system_takes_is_refused(name):
    assert "cannot be read" in refusal(Path(name))


@given(position=st.integers(0, 3000), byte=st.integers(0, 255))
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_a_damaged_header_never_raises_anything_else(saved, tmp_path_factory, position, byte):
    folder = shutil.copytree(saved, tmp_path_factory.mktemp("damaged") / "adapter")
    whole = bytearray((folder / WEIGHTS).read_bytes())
    whole[position] = byte
    (folder / WEIGHTS).write_bytes(whole)
    try:
        found = read(folder)
    except AdapterError as error:
        assert str(error).startswith("MoS adapter")
    else:
        assert found.pools


# Ways to damage an adapter's tensors in place.
def drop(end):
    return lambda tensors: tensors.pop(first(tensors, end))


def replace(end, make):
    def change(tensors):
        key = first(tensors, end)
        tensors[key] = make(tensors[key])

    return change


def fill(end, value):
    def change(tensors):
        tensors[first(tensors, end)].view(-1)[3] = value

    return change


def add(key):
    return lambda tensors: tensors.__setitem__(key, torch.ones(2))


DAMAGE = {
    "no pool": (drop("mos_A"), "not whole"),
    "no index": (drop("layers.1.mlp.up_proj.mos_index"), "not whole"),
    "no scale": (drop("mos_scale"), "not whole"),
    "nothing": (lambda tensors: tensors.clear(), "not whole"),
    "LoRA": (add(f"{ROOT}model.layers.0.self_attn.q_proj.lora_A.weight"), "no tensor of MoS"),
    "nameless": (add("mos_A"), "no tensor of MoS"),
    "two pools": (add(f"{ROOT}model.layers.3.mlp.up_proj.mos_A"), "two pools"),
    "pool of three dimensions": (replace("mos_A", lambda t: t[None]), "do not belong together"),
    "pools of two sizes": (replace("mos_B", lambda t: t[1:].contiguous()), "do not belong together"),
    "empty pool": (replace("mos_A", lambda t: t[:, :0].contiguous()), "do not belong together"),
    "index of floats": (replace("mos_index", lambda t: t.float()), "types"),
    "pool of integers": (replace("mos_A", lambda t: t.int()), "types"),
    "index of a type that MoS does not save": (replace("mos_index", lambda t: t.to(torch.uint16)), "does not save"),
    "scale of eight bits": (replace("mos_scale", lambda t: t.to(torch.float8_e4m3fn)), "does not save"),
    "pool of complex numbers": (replace("mos_A", lambda t: t.to(torch.complex64)), "does not save"),
    "a block of a number too long": (add(f"{ROOT}model.layers.{'9' * 5000}.mlp.up_proj.mos_index"), "not be read"),
    "two names of one tensor": (
        lambda tensors: tensors.update({k.removeprefix(ROOT): v.clone() for k, v in tensors.items() if "up_proj" in k}),
        "twice",
    ),
    "index of another shape": (replace("mos_index", lambda t: t[:, :4].contiguous()), "one shape"),
    "index of two dimensions": (replace("mos_index", lambda t: t[0].contiguous()), "one shape"),
    "scale of another shape": (replace("mos_scale", lambda t: t[:4].contiguous()), "scales"),
    "shard too high": (fill("mos_index", 32_000), "damaged"),
    "shard behind the last": (fill("mos_index", 2 * 8 * 4), "damaged"),
    "shard too low": (fill("mos_index", -1), "damaged"),
    "NaN in a pool": (fill("mos_A", float("nan")), "not finite"),
    "infinity in a pool": (fill("mos_B", float("inf")), "not finite"),
    "NaN in a scale": (fill("mos_scale", float("nan")), "not finite"),
}


@pytest.mark.parametrize(("change", "said"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_tensors_are_refused(adapter, change, said):
    change_tensors(adapter, change)
    assert said in refusal(adapter)


def test_a_file_that_is_replaced_while_it_is_read_is_refused(adapter, monkeypatch):
    """A trainer may save between the look at the header and the reading of the tensors."""
    whole, read_bytes = (adapter / WEIGHTS).read_bytes(), Path.read_bytes
    change_tensors(adapter, lambda tensors: tensors.update({k: v[:-4] for k, v in tensors.items() if "mos_A" in k}))
    other = (adapter / WEIGHTS).read_bytes()
    (adapter / WEIGHTS).write_bytes(whole)
    monkeypatch.setattr(Path, "read_bytes", lambda path: other if path.name == WEIGHTS else read_bytes(path))
    assert "while it was read" in refusal(adapter)


def test_a_wider_index_type_is_read(adapter, saved):
    """Indices are int16 where that fits and int32 where not: both are one adapter."""
    change_tensors(
        adapter, lambda tensors: tensors.update({k: v.int() for k, v in tensors.items() if k.endswith("mos_index")})
    )
    for one, other in zip(read(adapter).pools, read(saved).pools, strict=True):
        assert torch.equal(one.index, other.index)


@pytest.mark.parametrize(("max_rank", "said"), [(7, "r=8"), (1, "r=8")])
def test_a_rank_above_the_servers_is_refused(saved, max_rank, said):
    message = refusal(saved, max_rank=max_rank)
    assert said in message and f"max_lora_rank={max_rank}" in message


def test_a_budget_above_the_servers_rank_is_refused(tmp_path):
    """Pools may hold far more than r says: e counts what they hold."""
    folder = save_adapter(tmp_path / "wide", r=4, equivalent_rank=20)
    assert "equivalent rank=20" in refusal(folder, max_rank=16)
    assert read(folder, max_rank=20).pools


def test_a_too_large_adapter_is_refused_before_its_tensors_are_read(adapter, monkeypatch):
    monkeypatch.setattr("mos_vllm.reading.load", lambda data: pytest.fail("read"))
    refusal(adapter, max_rank=4)


def test_the_stamp_changes_when_a_file_is_written_again(adapter):
    before = stamp(adapter)
    assert stamp(adapter) == before
    Path(shutil.copy2(adapter / WEIGHTS, adapter / "new")).replace(adapter / WEIGHTS)  # same size, same time
    assert stamp(adapter) != before
    before = stamp(adapter)
    change_config(adapter, alpha=99)
    assert stamp(adapter) != before
    assert not (adapter / PACKED).exists()

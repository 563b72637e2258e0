"""The capacity plan counts what the paper and the server count."""

import re

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from mos_vllm.adapter import Adapter, Pools
from mos_vllm.held import hold
from mos_vllm.stack import Stack
from scripts.cell.shapes import meta_model
from scripts.config import CONFIGS, ROOT
from scripts.cost.serving import Gpu, LayerType, factors, indices, layer_types, plan, pools
from scripts.cost.serving_text import parse_gpu
from scripts.serve_plan import main

NODE = Gpu("node", 140e9, 4.8e12, 50e9, 8)


@pytest.fixture(scope="module")
def llama2_70b():
    return meta_model(OmegaConf.load(CONFIGS / "model" / "llama2_70b.yaml"))


def test_lora_16_of_llama2_70b_has_the_bytes_of_the_paper(llama2_70b):
    """All seven layers with their true shapes: 207,093,760 parameters, 4.14 TB for 10,000 users in bfloat16."""
    types = layer_types(llama2_70b)
    assert len(types) == 7 and all(each.blocks == 80 for each in types)
    assert factors(types, 16) == 2 * 207_093_760
    assert pools(types, 2, 4) == pytest.approx(2 * 207_093_760 / 8, rel=0.002)  # r/e less, and a shard of zeros


def test_the_base_is_spread_until_adapters_fit_and_every_byte_is_accounted_for(llama2_70b):
    found = plan(llama2_70b, NODE, r=16, e=2)
    assert (found.tp, found.groups) == (2, 4)
    assert found.base + found.slots + found.kv_cache + found.store == pytest.approx(0.9 * NODE.memory)
    assert found.base == pytest.approx(68.98e9, rel=0.001)
    native, exported, lora_16, lora_64 = found.rows
    assert exported.held == lora_16.held == lora_64.held / 4
    assert native.per_group == found.store // native.held
    assert found.gpus_for(10_000, native) == -(-10_000 // native.per_group) * 2 < found.gpus_for(10_000, lora_16) / 4
    assert native.warm < native.cold < exported.cold < lora_64.cold


def test_each_process_of_a_copy_of_the_base_holds_an_adapter_on_the_host(llama2_70b):
    """vLLM's tensor parallelism has a process for each GPU, which reads whole adapters and keeps them to itself."""
    types, found = layer_types(llama2_70b), plan(llama2_70b, NODE, r=16, e=2)
    whole = [pools(types, 2, 4), factors(types, 16), factors(types, 16), factors(types, 64)]
    assert found.tp == 2 and [row.on_host for row in found.rows] == [2 * each for each in whole]


def test_slots_have_the_larger_of_both_ranks(llama2_70b):
    """The server refuses an adapter whose r or e is above --max-lora-rank, and all slots have that rank."""
    found = [plan(llama2_70b, NODE, r=r, e=e) for r, e in ((4, 16), (16, 4), (4, 2))]
    assert found[0].slots == found[1].slots == 4 * found[2].slots
    assert found[0].rows[0].warm == found[1].rows[0].warm


def test_a_gpu_keeps_the_whole_of_one_factor_and_its_part_of_the_other():
    types = (LayerType("blocks.*.o_proj", 3, 8, 20), LayerType("blocks.*.q_proj", 3, 8, 20))
    assert factors(types, 1, tp=2) == 2 * 3 * ((8 / 2 + 20) + (8 + 20 / 2))
    assert factors(types, 1) == 2 * 3 * 2 * 28


def test_a_model_that_leaves_no_room_is_refused(llama2_70b):
    with pytest.raises(ValueError, match="a base model of 138 GB, 32 slots"):
        plan(llama2_70b, Gpu("small", 40e9, 1e12, 25e9, 2), r=16, e=2)


@pytest.mark.parametrize(("count", "tp"), [(3, None), (5, None), (2, 2), (6, 2), (8, 2), (16, 2)])
def test_a_model_is_spread_as_its_heads_can_be(llama2_70b, count, tp):
    """64 query heads and 8 of keys and values: vLLM takes no third of them."""
    gpu = Gpu(NODE.name, NODE.memory, NODE.memory_rate, NODE.host_rate, count)
    if tp is None:
        with pytest.raises(ValueError, match="as far as its attention heads can be spread"):
            plan(llama2_70b, gpu, r=16, e=2)
    else:
        assert plan(llama2_70b, gpu, r=16, e=2).tp == tp


def test_pools_and_indices_are_what_the_server_holds():
    """The formulas against mos_vllm's own memory, with its alignment of at most 256 bytes a tensor."""
    blocks, h, o, r, e, shards = 6, 32, 48, 8, 2, 4
    names = tuple(f"blocks.{block}.q_proj" for block in range(blocks))
    network = nn.ModuleDict(
        {"blocks": nn.ModuleList(nn.ModuleDict({"q_proj": nn.Linear(h, o)}) for _ in range(blocks))}
    )
    types = layer_types(network)
    count = e * blocks * shards
    a, b = torch.ones(count, h // shards), torch.ones(count, o // shards)
    adapter = Adapter(1.0, (Pools(names, a, b, torch.zeros(2, blocks, r, shards, dtype=torch.int16), None),))
    slots = torch.zeros(blocks, 1, 1, r, h), torch.zeros(blocks, 1, 1, o, r)
    stack = Stack(names, h, o, *slots, slice(0, r), slice(0, h), slice(0, o))
    held = hold("x", adapter, {types[0].name: stack}, torch.bfloat16, str)
    assert 0 <= len(held.memory) - pools(types, e, shards) < 3 * 256
    assert held.indices.numbers.nbytes == indices(types, r, shards)


def test_the_command_prints_the_papers_10000_users(capsys):
    main(["llama2_70b", "--gpu", "h200:8", "-r", "16", "-e", "2"])
    shown = capsys.readouterr().out
    assert "4 copies on 2 GPU(s) each" in shown and "LoRA 64 has 37.53, MoS 16/32 with e=8 has 37.63" in shown
    rows = {line.split("  ")[0]: line for line in shown.splitlines()}
    assert (
        " 1.04 " in rows["MoS r=16 e=2"] and " 8.28 " in rows["LoRA 16"]
    )  # each twice, by the two processes of a copy


def test_the_page_has_the_numbers_of_the_command(capsys):
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    [command] = re.findall(r"python -m scripts.serve_plan (.*) --plot docs/serving.svg", page)
    main(command.split())
    rows = {line.split("  ")[0]: line.split("  ") for line in capsys.readouterr().out.splitlines()}
    named = {
        "MoS r=16 e=2": "MoS r=16 e=2",
        "the same, exported": "MoS exported to LoRA of rank 16",
        "LoRA 64": "LoRA 64",
    }
    for ours, theirs in named.items():
        [line] = [line for line in page.splitlines() if line.startswith(f"| {ours} |")]
        held, _, node, gpus, hosts, warm, cold = [cell.strip() for cell in rows[theirs] if cell][1:]
        activation = f"{warm.removesuffix(' ms')} / {cold}"
        assert [cell.strip() for cell in line.strip("|").split("|")][1:] == [held, node, gpus, hosts, activation]


def test_the_picture_names_each_way_of_serving(tmp_path, capsys):
    main(["llama2_7b", "--gpu", "h100_80g", "--plot", str(tmp_path / "memory.svg")])
    drawn = (tmp_path / "memory.svg").read_text(encoding="utf-8")
    assert all(f"<!-- {label} -->" in drawn for label in ("MoS r=16 e=2", "LoRA 16", "LoRA 64"))
    assert [path.name for path in tmp_path.iterdir()] == ["memory.svg"]


def test_the_picture_of_the_page_is_what_its_command_draws(tmp_path, capsys):
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    [command] = re.findall(r"python -m scripts.serve_plan (.*) --plot docs/serving.svg", page)
    main([*command.split(), "--plot", str(tmp_path / "serving.svg")])
    assert (tmp_path / "serving.svg").read_bytes() == (ROOT / "docs" / "serving.svg").read_bytes()


@pytest.mark.parametrize("text", ["h300:8", "h200:0", "h200:x", ":8", "h200:8:1"])
def test_an_unknown_gpu_is_refused(text):
    with pytest.raises(ValueError, match="h200:8"):
        parse_gpu(text)


def test_a_gpu_without_a_count_is_one():
    assert (parse_gpu("h200").count, parse_gpu("h200:4").count) == (1, 4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope"], "Unknown model 'nope'"),
        (["llama2_7b", "-r", "0"], "at least 1"),
        (["llama2_7b", "--gpu", "x"], "h200:8"),
        (["llama2_7b", "--kv-gib", "-1"], "--kv-gib=-1 must be 0 or more"),
        (["llama2_7b", "--kv-gib", "nan"], "--kv-gib=nan must be 0 or more"),
        (["llama2_7b", "--kv-gib", "inf"], "Name more GPUs"),
        (["llama2_7b", "--plot", "none/x.svg"], "--plot=none/x.svg: there is no folder 'none'"),
        (["local"], "model.source.path=None holds no config.json"),
        (["a=b"], "a=b"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments, said):
    with pytest.raises(SystemExit, match=said) as stopped:
        main(arguments)
    assert "\n" not in str(stopped.value.code)


def test_a_model_that_builds_on_another_is_planned(capsys):
    """`micro_13b` has the defaults of `micro_7b`."""
    main(["micro_13b", "--gpu", "h200"])
    assert "micro_13b in bfloat16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ("", "has no memory_tb_s and no host_gb_s above 0"),
        ("memory_tb_s: 4.8\n", "has no host_gb_s above 0"),
        ("memory_tb_s: 0\nhost_gb_s: fast\n", "has no memory_tb_s and no host_gb_s above 0"),
    ],
)
def test_a_gpu_file_without_rates_is_refused_with_the_keys_to_add(monkeypatch, tmp_path, rates, said):
    """As `make gpu-check` writes it."""
    (tmp_path / "gpu").mkdir()
    written = f"name: Mine\nmemory_gib: 80\ntflops: 300\n{rates}"
    (tmp_path / "gpu" / "mine.yaml").write_text(written, encoding="utf-8")
    monkeypatch.setattr("scripts.cost.serving_text.CONFIGS", tmp_path)
    monkeypatch.setattr("scripts.cost.serving_text.choices", lambda group: ["mine"])
    with pytest.raises(ValueError, match=r"configs/gpu/mine\.yaml") as error:
        parse_gpu("mine:8")
    assert said in str(error.value)

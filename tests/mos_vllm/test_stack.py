"""A slot holds after one write what vLLM's own set_lora writes layer by layer, for each kind of layer and each rank."""

import weakref
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mos_vllm.adapter import Adapter, AdapterError, Pools
from mos_vllm.held import SHARED, Held, hold
from mos_vllm.stack import build_stacks
from tests.mos_vllm.equations import factors

layers = pytest.importorskip("vllm.lora.layers", reason="vLLM is not installed")
linear = pytest.importorskip("vllm.model_executor.layers.linear")

SLOTS, MAX_RANK, HEAD = 3, 8, 4
# module name: (names of what is fused into it, class of the base layer, its class of LoRA layer, the sharded one)
LAYERS = {
    "attn.qkv_proj": (["q_proj", "k_proj", "v_proj"], linear.QKVParallelLinear, layers.MergedQKVParallelLinearWithLoRA,
                      layers.MergedQKVParallelLinearWithShardedLoRA),
    "attn.o_proj": (["o_proj"], linear.RowParallelLinear, layers.RowParallelLinearWithLoRA,
                    layers.RowParallelLinearWithShardedLoRA),
    "mlp.gate_up_proj": (["gate_proj", "up_proj"], linear.MergedColumnParallelLinear,
                         layers.MergedColumnParallelLinearWithLoRA, layers.MergedColumnParallelLinearWithShardedLoRA),
    "mlp.fc": (["fc"], linear.ColumnParallelLinear, layers.ColumnParallelLinearWithLoRA,
               layers.ColumnParallelLinearWithShardedLoRA),
    "mlp.router": (["router"], linear.ReplicatedLinear, layers.ReplicatedLinearWithLoRA,
                   layers.ReplicatedLinearWithLoRA),
}  # fmt: skip
WIDTHS = {
    "q_proj": (32, 32), "k_proj": (32, 16), "v_proj": (32, 16), "o_proj": (32, 32), "gate_proj": (32, 24),
    "up_proj": (32, 24), "fc": (32, 24), "router": (32, 8),
}  # fmt: skip


def base_layer(cls, parts, tp, rank):
    """One of vLLM's linear layers with its sizes alone, since building one takes a process group."""
    base = cls.__new__(cls)
    nn.Module.__init__(base)
    base.tp_size, base.tp_rank = (1, 0) if cls is linear.ReplicatedLinear else (tp, rank)
    base.input_size = WIDTHS[parts[0]][0]
    base.input_size_per_partition = base.input_size // tp
    base.output_sizes = [WIDTHS[part][1] for part in parts]
    base.output_size = sum(base.output_sizes)
    base.output_size_per_partition = base.output_size // base.tp_size
    base.weight = nn.Parameter(torch.zeros(1))
    if cls is linear.QKVParallelLinear:
        base.head_size, base.total_num_heads, base.total_num_kv_heads = HEAD, 32 // HEAD, 16 // HEAD
        base.num_heads, base.num_kv_heads, base.num_kv_head_replicas = 32 // HEAD // tp, 16 // HEAD // tp, 1
    return base


def lora_modules(blocks, tp=1, rank=0, sharded=False):
    """vLLM's LoRA layers of a small model by name, and what is fused in them."""
    config = SimpleNamespace(max_lora_rank=MAX_RANK, fully_sharded_loras=sharded, lora_dtype=torch.float32)
    modules, packed = {}, {}
    for block in range(blocks):
        for name, (parts, base, plain, cut) in LAYERS.items():
            module = (cut if sharded else plain)(base_layer(base, parts, tp, rank))
            module.create_lora_weights(SLOTS, config)
            place = f"layers.{block}.{name.rpartition('.')[0]}"
            modules[f"layers.{block}.{name}"] = module
            if len(parts) > 1:
                packed[f"layers.{block}.{name}"] = [f"{place}.{part}" for part in parts]
    return modules, packed


def narrow_kv(modules, packed, block):
    """Halve the keys and values of one block, as in models whose blocks differ in their heads."""
    config = SimpleNamespace(max_lora_rank=MAX_RANK, fully_sharded_loras=False, lora_dtype=torch.float32)
    parts, base, plain, _ = LAYERS["attn.qkv_proj"]
    layer = base_layer(base, parts, 1, 0)
    layer.total_num_kv_heads, layer.num_kv_heads = layer.total_num_kv_heads // 2, layer.num_kv_heads // 2
    module = plain(layer)
    module.create_lora_weights(SLOTS, config)
    modules[f"layers.{block}.attn.qkv_proj"] = module
    return modules, packed


def full_name(block, part):
    [place] = [name.rpartition(".")[0] for name, (parts, *_) in LAYERS.items() if part in parts]
    return f"layers.{block}.{place}.{part}"


def random_adapter(seed, *, rank=4, shards=2, e=2, blocks=(0, 1, 2), parts=tuple(WIDTHS), scaled=False, alpha=8.0):
    generator = torch.Generator().manual_seed(seed)
    pools = []
    for part in parts:
        h, o = WIDTHS[part]
        count = e * len(blocks) * shards
        a, b = (torch.randn(count, width // shards, generator=generator) for width in (h, o))
        index = torch.randint(0, count, (2, len(blocks), rank, shards), generator=generator).short()
        scale = torch.randn(len(blocks), rank, generator=generator) if scaled else None
        pools.append(Pools(tuple(full_name(block, part) for block in blocks), a, b, index, scale))
    return Adapter(alpha, tuple(pools))


def write(stacks, slot, held: Held):
    for kind, stack in stacks.items():
        if kind in held.parts:
            stack.write(slot, held.parts[kind], held.memory, held.indices.numbers.int())
        else:
            stack.reset(slot)


def set_lora(modules, packed, slot, adapter):
    """What vLLM does with the exported adapter."""
    found = factors(adapter)
    scaling = {name: adapter.alpha / pools.rank for pools in adapter.pools for name in pools.modules}
    for name, module in modules.items():
        pairs = [found.get(part) for part in packed.get(name, [name])]
        a = [pair and pair[0] for pair in pairs]
        b = [pair and pair[1] * scaling[part] for part, pair in zip(packed.get(name, [name]), pairs, strict=True)]
        if not any(pairs):
            module.reset_lora(slot)
        elif name in packed:
            module.set_lora(slot, a, b)
        else:
            module.set_lora(slot, a[0], b[0])


def slots(modules):
    return {
        (name, side, i): tensor
        for name, module in modules.items()
        for side in ("lora_a_stacked", "lora_b_stacked")
        for i, tensor in enumerate(getattr(module, side))
    }


adapters = st.builds(
    random_adapter,
    st.integers(0, 99),
    rank=st.sampled_from([1, 3, 4, 8]),
    shards=st.sampled_from([1, 2, 4, 8]),
    e=st.integers(1, 3),
    blocks=st.sampled_from([(0, 1, 2), (1,), (0, 2)]),
    parts=st.sampled_from([tuple(WIDTHS), ("q_proj", "v_proj"), ("o_proj",), ("fc", "up_proj", "router")]),
    scaled=st.booleans(),
    alpha=st.sampled_from([8.0, 0.3]),
)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(("tp", "rank"), [(1, 0), (2, 0), (2, 1), (4, 3)])
@given(first=adapters, second=adapters, slot=st.integers(0, SLOTS - 1))
@settings(max_examples=12, suppress_health_check=list(HealthCheck))
def test_a_slot_holds_what_vllm_writes_layer_by_layer(sharded, tp, rank, first, second, slot):
    """Two adapters in turn, so that nothing of the first is left under a second that leaves layers out."""
    expected, packed = lora_modules(3, tp, rank, sharded)
    modules, _ = lora_modules(3, tp, rank, sharded)
    stacks, rest = build_stacks(modules, packed)
    assert not rest and len(stacks) == len(WIDTHS)
    for adapter in (first, second):
        set_lora(expected, packed, slot, adapter)
        write(stacks, slot, hold("x", adapter, stacks, torch.float32, str))
    wanted = slots(expected)
    for key, tensor in slots(modules).items():
        torch.testing.assert_close(tensor, wanted[key], rtol=1e-6, atol=1e-6, msg=str(key))


def test_what_a_layer_reads_is_contiguous_and_a_view_of_the_stack():
    modules, packed = lora_modules(3)
    stacks, _ = build_stacks(modules, packed)
    for tensor in slots(modules).values():
        assert tensor.is_contiguous()
    stacks["layers.*.mlp.fc"].a.fill_(7)
    assert all((modules[f"layers.{block}.mlp.fc"].lora_a_stacked[0] == 7).all() for block in range(3))


def test_a_plain_lora_is_written_through_the_views():
    """vLLM goes on writing LoRA adapters layer by layer."""
    modules, packed = lora_modules(3)
    stacks, _ = build_stacks(modules, packed)
    modules["layers.1.mlp.fc"].set_lora(2, torch.ones(4, 32), torch.ones(24, 4))
    assert stacks["layers.*.mlp.fc"].a[1, 2].sum() == 4 * 32
    assert stacks["layers.*.mlp.fc"].a[[0, 2]].sum() == 0


class CountWrites(TorchDispatchMode):
    """The operations that write tensor content, each of which is a launch on a GPU."""

    VIEWS = ("view", "slice", "select", "transpose", "expand", "alias", "detach", "_unsafe_view", "as_strided",
             "unsqueeze")  # fmt: skip

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function).split(".")[1]
        if name not in self.VIEWS:
            self.count[name] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("parts", [tuple(WIDTHS), ("q_proj", "router")])
def test_a_write_takes_at_most_six_operations_a_layer_type_whatever_the_blocks(scaled, parts):
    counts = []
    for blocks in (2, 12):
        modules, packed = lora_modules(blocks)
        stacks, _ = build_stacks(modules, packed)
        held = hold(
            "x", random_adapter(0, blocks=range(blocks - 1), parts=parts, scaled=scaled), stacks, torch.float32, str
        )
        with CountWrites() as counter:
            write(stacks, 1, held)
        counts.append(counter.count.total())
        assert counter.count["copy_"] >= 2 * len(parts)  # the mode sees the writes
    assert counts[0] == counts[1] <= 6 * len(WIDTHS)


def test_equal_indices_are_kept_once():
    modules, packed = lora_modules(3)
    stacks, _ = build_stacks(modules, packed)
    one, same, other = (
        hold("x", Adapter(alpha, random_adapter(seed).pools), stacks, torch.float32, str)
        for seed, alpha in ((71, 1.0), (71, 2.0), (72, 1.0))  # no other test holds these
    )
    assert one.indices is same.indices and one.indices is not other.indices
    assert not torch.equal(one.memory, same.memory)
    kept = weakref.ref(one.indices)
    assert any(indices is kept() for indices in SHARED.values())
    del one, same
    assert kept() is None  # the collector of cycles need not run for it


def test_what_is_held_is_the_pools_and_indices_and_a_shard_more_of_each():
    modules, packed = lora_modules(3)
    stacks, _ = build_stacks(modules, packed)
    adapter = random_adapter(0, rank=8, shards=4)
    held = hold("x", adapter, stacks, torch.bfloat16, str)
    pools = sum(2 * (pool.a.numel() + pool.b.numel()) for pool in adapter.pools)
    zero = sum(2 * (pool.a.shape[1] + pool.b.shape[1]) for pool in adapter.pools)
    assert pools + zero <= len(held.memory) <= pools + zero + 2 * len(WIDTHS) * 256
    assert held.indices.numbers.dtype == torch.int16
    assert len(held.indices.numbers) == 2 * len(WIDTHS) * 3 * 8 * 4


def test_indices_beyond_int16_are_int32():
    modules, packed = lora_modules(3)
    stacks, _ = build_stacks(modules, packed)
    adapter = random_adapter(0, e=2000, shards=8, parts=("q_proj",))
    held = hold("x", adapter, stacks, torch.float32, str)
    assert held.indices.numbers.dtype == torch.int32 and held.indices.numbers.max() == 2000 * 3 * 8


def test_random_scales_are_applied_before_rounding():
    modules, packed = lora_modules(3)
    stacks, _ = build_stacks(modules, packed)
    adapter = random_adapter(0, scaled=True, parts=("fc",))
    held = hold("x", adapter, stacks, torch.bfloat16, str)
    stack = stacks["layers.*.mlp.fc"]
    write({"layers.*.mlp.fc": stack}, 0, held)
    exact = torch.stack([factors(adapter)[name][0] for name in adapter.pools[0].modules])
    assert torch.equal(stack.a[:, 0, 0, :4].bfloat16(), exact.bfloat16())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: Pools(("layers.9.mlp.fc", *p.modules[1:]), p.a, p.b, p.index, p.scale), "'layers.9.mlp.fc'"),
        (lambda p: Pools(("lm_head",) * 3, p.a, p.b, p.index, p.scale), "'lm_head'"),
        (lambda p: Pools(p.modules, p.a[:, :4], p.b, p.index, p.scale), r"\(32, 24\), the adapter \(8, 24\)"),
        (lambda p: Pools(p.modules, p.a, p.b.repeat(1, 2), p.index, p.scale), r"\(32, 24\), the adapter \(32, 48\)"),
    ],
)
@pytest.mark.parametrize(("tp", "rank"), [(1, 0), (2, 1)])
def test_an_adapter_that_does_not_fit_the_model_is_refused(change, said, tp, rank):
    modules, packed = lora_modules(3, tp, rank)
    stacks, _ = build_stacks(modules, packed)
    [pools] = random_adapter(0, parts=("fc",)).pools
    with pytest.raises(AdapterError, match=said):
        hold("x", Adapter(1.0, (change(pools),)), stacks, torch.float32, str)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("side", ["a", "b", "alpha", "scale"])
def test_numbers_that_are_infinite_in_the_servers_type_are_refused(dtype, side):
    """A slot with an infinity would spoil later requests, those of other adapters too."""
    modules, packed = lora_modules(3)
    stacks, _ = build_stacks(modules, packed)
    [pools] = random_adapter(0, parts=("fc",), scaled=side == "scale").pools
    large = torch.finfo(dtype).max * 2.0
    a, b, scale = pools.a.double(), pools.b.double(), pools.scale
    if side == "a":
        a[3, 1] = -large
    if side == "b":
        b[3, 1] = large
    if side == "scale":
        scale = scale.double().fill_(large / float(a.abs().max()))
    alpha = pools.rank * large / float(b.abs().max()) if side == "alpha" else 1.0
    fine = hold("x", Adapter(1.0, (pools,)), stacks, dtype, str)
    assert fine.memory.numel()
    with pytest.raises(AdapterError, match=f"too large for {dtype}"):
        hold("x", Adapter(alpha, (Pools(pools.modules, a, b, pools.index, scale),)), stacks, dtype, str)


def test_blocks_of_several_widths_are_left_to_vllm():
    modules, packed = lora_modules(2)
    odd = modules["layers.1.mlp.fc"]
    odd.lora_a_stacked = (torch.zeros(SLOTS, 1, MAX_RANK, 16),)
    stacks, rest = build_stacks(modules, packed)
    assert "layers.*.mlp.fc" not in stacks and odd in rest and len(stacks) == len(WIDTHS) - 1

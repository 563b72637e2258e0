"""What a server of many adapters holds, and how long an activation takes, from the shapes of its base model.

Letters: L blocks, h in-features, o out-features of a layer type, l shards per vector; r active rank, e equivalent rank;
R the rank to which slots are built, the larger of r and e; tp tensor parallelism. docs/serving.md has the formulas. All
numbers are of bfloat16 (2 bytes).
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import nn

from mos_vllm.adapter import layer_type
from scripts.cost.gpu import SHARE_FOR_VLLM

BYTES = 2
REACHED = 0.7  # share of the memory's peak rate that a copy reaches
LEAST_STORE = 0.1  # of the GPU's memory: with less, the base model is spread over more GPUs
ROW_PARALLEL = ("o_proj", "down_proj")  # cut along h; all others along o


@dataclass(frozen=True)
class LayerType:
    """Linear layers of L blocks with h in- and o out-features each."""

    name: str
    blocks: int
    inputs: int
    outputs: int

    def kept(self, tp: int) -> float:
        """Numbers that one GPU keeps of all blocks' factors at rank 1: A is cut for row-parallel layers, else B."""
        row = self.name.rpartition(".")[2] in ROW_PARALLEL
        return self.blocks * (self.inputs / tp + self.outputs if row else self.inputs + self.outputs / tp)


def layer_types(network: nn.Module) -> tuple[LayerType, ...]:
    """The linear layers in the blocks of a model, which may be on the meta device."""
    layers = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    found = Counter((layer_type(name), module.in_features, module.out_features) for name, module in layers)
    return tuple(LayerType(kind, count, h, o) for (kind, h, o), count in found.items() if "*" in kind)


def factors(types: tuple[LayerType, ...], rank: int, tp: int = 1) -> float:
    """Bytes of the factors of all layers: 2 r sum L (h + o); with tp, what one GPU keeps of them."""
    return BYTES * rank * sum(each.kept(tp) for each in types)


def pools(types: tuple[LayerType, ...], e: int, shards: int) -> float:
    """Bytes of one adapter's pools, as mos_vllm holds them, with one shard of zeros each: 2 sum (e L + 1/l) (h + o)."""
    return BYTES * sum((e * each.blocks + 1 / shards) * (each.inputs + each.outputs) for each in types)


def indices(types: tuple[LayerType, ...], rank: int, shards: int) -> int:
    """Bytes of the indices, kept once in each process for all adapters of a seed: 4 R l sum L, in int16."""
    return 2 * 2 * rank * shards * sum(each.blocks for each in types)


@dataclass(frozen=True)
class Gpu:
    """memory: bytes; memory_rate and host_rate: bytes a second; count: GPUs of one node."""

    name: str
    memory: float
    memory_rate: float
    host_rate: float
    count: int


@dataclass(frozen=True)
class Served:
    """One way of serving an adapter.

    held: bytes on one GPU for one adapter
    on_host: bytes in the host's memory, where each of the tp processes has its own copy
    per_group: adapters that the tp GPUs of one copy of the base hold
    warm, cold: seconds of an activation from the GPU's memory and from the host's
    """

    label: str
    held: float
    on_host: float
    per_group: int
    warm: float | None
    cold: float


@dataclass(frozen=True)
class Plan:
    """A node of `gpu.count` GPUs with copies of a base model on `tp` GPUs each. Sizes are bytes on one GPU."""

    gpu: Gpu
    tp: int
    base: float
    slots: float
    kv_cache: float
    store: float
    rows: tuple[Served, ...]

    @property
    def groups(self) -> int:
        return self.gpu.count // self.tp

    def gpus_for(self, users: int, row: Served) -> int:
        """How many GPUs hold the adapters of `users`, all resident."""
        return math.ceil(users / row.per_group) * self.tp


def plan(
    network: nn.Module, gpu: Gpu, *, r: int, e: int, shards: int = 4, max_loras: int = 32, kv_cache: float = 10 * 2**30
) -> Plan:
    """What `gpu` serves of MoS adapters of rank r and equivalent rank e, and of others in the same memory.

    kv_cache: bytes on each GPU

    Raises:
        ValueError: the base model does not fit, or leaves no room for an adapter.
    """
    types, weights = layer_types(network), sum(parameter.numel() for parameter in network.parameters()) * BYTES
    for tp in (n for n in range(1, gpu.count + 1) if gpu.count % n == 0 and splits(network, n)):
        slots = max_loras * factors(types, max(r, e), tp)
        store = SHARE_FOR_VLLM * gpu.memory - weights / tp - slots - kv_cache
        if store >= LEAST_STORE * gpu.memory:
            rest = tuple(lora(types, gpu, label, rank, tp, store) for label, rank in others(r))
            rows = (native(types, gpu, r, e, shards, tp, store), *rest)
            return Plan(gpu, tp, weights / tp, slots, kv_cache, store, rows)
    raise ValueError(
        f"{gpu.count} x {gpu.name} leave less than {LEAST_STORE:.0%} of their memory for adapters beside a base model "
        f"of {weights / 1e9:.0f} GB, {max_loras} slots and the KV cache, as far as its attention heads can be spread "
        "over them. Name more GPUs, or lower --max-loras."
    )


def splits(network: nn.Module, tp: int) -> bool:
    """Whether vLLM can spread the model over `tp` GPUs: query heads evenly, and key-value heads evenly or copied."""
    config: Any = network.config
    heads = config.num_attention_heads
    kv = getattr(config, "num_key_value_heads", heads)
    return heads % tp == 0 and (kv % tp == 0 or tp % kv == 0)


def others(r: int) -> list[tuple[str, int]]:
    return [(f"MoS exported to LoRA of rank {r}", r), ("LoRA 16", 16), ("LoRA 64", 64)]


def native(types: tuple[LayerType, ...], gpu: Gpu, r: int, e: int, shards: int, tp: int, store: float) -> Served:
    """Pools on every GPU, since a shard may lie anywhere in a factor. The gather reads and writes whole factors, the
    copy reads and writes what the GPU keeps."""
    held, rank = pools(types, e, shards), max(r, e)
    warm = (2 * factors(types, rank) + 2 * factors(types, rank, tp)) / (REACHED * gpu.memory_rate)
    return Served(f"MoS r={r} e={e}", held, tp * held, int(store // held), warm, warm + held / gpu.host_rate)


def lora(types: tuple[LayerType, ...], gpu: Gpu, label: str, rank: int, tp: int, store: float) -> Served:
    """Factors, of which a GPU keeps its part; vLLM holds them on a GPU in slots only, so this counts slots."""
    held = factors(types, rank, tp)
    return Served(
        label,
        held,
        tp * factors(types, rank),
        int(store // held),
        None,
        held / gpu.host_rate + held / (REACHED * gpu.memory_rate),
    )

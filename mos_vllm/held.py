"""What a server holds of an adapter: all pools in one piece of memory, and indices that equal adapters share."""

import hashlib
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from mos_vllm.adapter import Adapter, AdapterError, Pools, layer_type

if TYPE_CHECKING:
    from mos_vllm.stack import Stack

LARGEST = 1e15  # of a pool's numbers; products of it with two like it stay finite in float32 and bfloat16
ALIGNMENT = 256  # bytes; each tensor of a piece can then be viewed in its own type, and pieces laid side by side


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class View:
    """A tensor within a piece of memory."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def end(self) -> int:
        return self.offset + math.prod(self.shape) * self.dtype.itemsize

    def of(self, memory: Tensor) -> Tensor:
        """memory: (bytes,) uint8"""
        return memory[self.offset : self.end].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class Part:
    """One layer type of an adapter: pools (n + 1, h/l) and (n + 1, o/l), whose last shard is zero, and where its
    indices are. Blocks and ranks of the model that the adapter leaves out read the zero shard, so that writing a slot
    also clears it.

    scale: (L, R_a) factors of the rows of A, or None
    """

    a: View
    b: View
    scale: View | None
    index_a: slice
    index_b: slice


class Indices:
    """The indices of one adapter, (m,) int16 where that is wide enough, else int32."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers


# Adapters that were drawn from one seed for one layout have equal indices, which are kept once.
SHARED: WeakValueDictionary[bytes, Indices] = WeakValueDictionary()


def shared(numbers: Tensor) -> Indices:
    fits = int(numbers.max()) <= torch.iinfo(torch.int16).max
    numbers = numbers.to(torch.int16 if fits else torch.int32)
    digest = hashlib.blake2b(numbers.numpy().tobytes(), digest_size=32, key=str(numbers.dtype).encode()).digest()
    return SHARED.setdefault(digest, Indices(numbers))


@dataclass(frozen=True)
class Held:
    """A MoS adapter in a server's memory.

    memory: (bytes,) uint8, the pools in the server's type, with alpha / r in those of B; parts: by layer type
    key: a number of its own, under which the device store keeps it
    """

    rank: int
    memory: Tensor
    indices: Indices
    parts: Mapping[str, Part]
    key: int = field(default_factory=itertools.count().__next__)


def hold(
    folder: object, adapter: Adapter, stacks: Mapping[str, "Stack"], dtype: torch.dtype, rename: Callable[[str], str]
) -> Held:
    """Arrange an adapter for the stacks of a model.

    dtype: the server's, to which pools are rounded; random scales are applied before that, so A stays as it was saved
    rename: from PEFT's name of a layer to vLLM's

    Raises:
        AdapterError: the adapter does not fit the model.
    """
    parts: dict[str, Part] = {}
    contents: list[Contents] = []
    numbers: list[Tensor] = []
    end = start = 0
    for pools in adapter.pools:
        names = [rename(name) for name in pools.modules]
        kind = layer_type(names[0])
        stack = fitting(folder, pools, names, stacks.get(kind))
        blocks = [stack.names.index(name) for name in names]
        views, end = place(pools, stack, dtype, end)
        index_a, index_b = (index.flatten() for index in padded(pools, stack, blocks))
        middle, stop = start + len(index_a), start + len(index_a) + len(index_b)
        parts[kind] = Part(*views, slice(start, middle), slice(middle, stop))
        contents.append((parts[kind], pools, stack, blocks))
        numbers, start = [*numbers, index_a, index_b], stop
    memory = torch.zeros(aligned(end), dtype=torch.uint8)
    for part, pools, stack, blocks in contents:
        fill(memory, part, pools, adapter.alpha / pools.rank, stack, blocks)
        check_range(folder, part, memory, dtype)
    return Held(max(pools.rank for pools in adapter.pools), memory, shared(torch.cat(numbers)), parts)


def check_range(folder: object, part: Part, memory: Tensor, dtype: torch.dtype) -> None:
    """Raises AdapterError where a number has become infinite, or so large that a product would: a slot with one spoils
    later requests of others too."""
    scale = 1.0 if part.scale is None else float(part.scale.of(memory).abs().max())
    for view in (part.a, part.b):
        pool = view.of(memory)
        largest = float(max(abs(bound) for bound in pool.aminmax())) * (scale if view is part.a else 1.0)
        if not largest <= min(torch.finfo(dtype).max, LARGEST):
            raise AdapterError(folder, f"holds numbers that are too large for {dtype}, once they are scaled by alpha.")


Contents = tuple[Part, Pools, "Stack", list[int]]  # the blocks of the stack that the pools belong to


def fitting(folder: object, pools: Pools, names: list[str], stack: "Stack | None") -> "Stack":
    """The stack that these layers belong to. Raises AdapterError if the model has none, or one of other widths."""
    if stack is None or not set(names) <= set(stack.names):
        missing = next(name for name in names if stack is None or name not in stack.names)
        raise AdapterError(folder, f"does not fit the model, which has no layer '{missing}' that it can adapt.")
    widths, expected = (pools.in_features, pools.out_features), (stack.in_features, stack.out_features)
    if widths != expected:
        raise AdapterError(
            folder, f"does not fit the model: '{names[0]}' has (in, out) features {expected}, the adapter {widths}."
        )
    return stack


Views = tuple[View, View, View | None]


def place(pools: Pools, stack: "Stack", dtype: torch.dtype, start: int) -> tuple[Views, int]:
    """Where the pools of a layer type lie from the byte `start` on, and the byte behind them."""

    def after(end: int, shape: tuple[int, ...], dtype: torch.dtype) -> View:
        return View(aligned(end), shape, dtype)

    count = len(pools.a) + 1
    a = after(start, (count, pools.a.shape[1]), dtype if pools.scale is None else pools.a.dtype)
    b = after(a.end, (count, pools.b.shape[1]), dtype)
    if pools.scale is None:
        return (a, b, None), b.end
    scale = after(b.end, (len(stack.names), stack.a.shape[3]), pools.scale.dtype)
    return (a, b, scale), scale.end


def fill(memory: Tensor, part: Part, pools: Pools, factor: float, stack: "Stack", blocks: list[int]) -> None:
    """Copy the pools of a layer type to their place in zeroed memory; factor: alpha / r, which goes into those of B."""
    part.a.of(memory)[:-1].copy_(pools.a)
    part.b.of(memory)[:-1].copy_(pools.b).mul_(factor)  # rounded before it is scaled, as vLLM does with LoRA
    if part.scale is not None and pools.scale is not None:
        kept = pools.scale[:, stack.rows]  # (L, r) -> the rows of A on this rank
        part.scale.of(memory)[blocks, : kept.shape[1]] = kept


def padded(pools: Pools, stack: "Stack", blocks: list[int]) -> tuple[Tensor, Tensor]:
    """The indices of A (L, R_a, l) and of B (L, R, l) for all L blocks of the model, int32; n where there is none."""
    shards = pools.index.shape[3]
    shape = (len(stack.names), stack.max_rank, shards)
    both = torch.full((2, *shape), len(pools.a), dtype=torch.int32)
    both[:, blocks, : pools.rank] = pools.index.int()
    return both[0, :, stack.rows], both[1]

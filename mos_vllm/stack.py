"""The slots of all blocks of a layer type in one tensor, so that one adapter is written in a few operations.

vLLM keeps two tensors for each layer: A (slots, 1, R, h) and B (slots, 1, o, R), where R is max_lora_rank. Here those
of a layer type are views of two larger ones with the blocks in front. A view of one block stays contiguous, as vLLM's
kernels require.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mos_vllm.adapter import block_numbers, layer_type
from mos_vllm.held import Part

Kept = slice | Tensor  # which rows or columns a tensor-parallel rank keeps


class Member(NamedTuple):
    """One adaptable layer: its name, vLLM's module for it, and its place among the layers that vLLM has fused there."""

    name: str
    module: Any
    place: int


@dataclass(frozen=True)
class Stack:
    """The slots of one layer type with L blocks.

    names: (L,) layers in the order of their blocks; in_features h and out_features o are those of the whole layer
    a: (L, slots, 1, R_a, h_k), b: (L, slots, 1, o_k, R): what this rank keeps; all of it without tensor parallelism
    rows: R_a of the R rows of A (fully sharded LoRA cuts them); columns_a: h_k of h; columns_b: o_k of o
    """

    names: tuple[str, ...]
    in_features: int
    out_features: int
    a: Tensor
    b: Tensor
    rows: slice
    columns_a: Kept
    columns_b: Kept

    @property
    def max_rank(self) -> int:
        """R"""
        return self.b.shape[-1]

    def write(self, slot: int, part: Part, held: Tensor, index: Tensor) -> None:
        """Assemble the factors of all blocks into `slot` (Sec. 3.4, Eq. 4); what the adapter leaves out becomes zero.

        held: (bytes,) uint8, the pools of an adapter; index: (m,) int32, its indices; both on the device
        """
        blocks = len(self.names)
        a = part.a.of(held).index_select(0, index[part.index_a]).view(blocks, -1, self.in_features)  # (L, R_a, h)
        if part.scale is not None:
            a = (a * part.scale.of(held)[..., None]).to(a.dtype)
        b = part.b.of(held).index_select(0, index[part.index_b]).view(blocks, -1, self.out_features)  # (L, R, o)
        self.a[:, slot, 0].copy_(a[..., self.columns_a])
        self.b[:, slot, 0].copy_(b[..., self.columns_b].transpose(1, 2))  # (L, R, o_k) -> (L, o_k, R)

    def reset(self, slot: int) -> None:
        self.a[:, slot] = 0
        self.b[:, slot] = 0


def build_stacks(modules: dict[str, Any], packed: dict[str, list[str]]) -> tuple[dict[str, Stack], list[Any]]:
    """Stack the slots of vLLM's linear LoRA layers by layer type; the layers then hold views.

    modules: vLLM's LoRA layers by name; packed: the names of the layers that are fused into one of them
    returns the stacks by layer type, and the modules that were left as they are: no MoS adapter can adapt these
    """
    groups: dict[str, list[Member]] = defaultdict(list)
    rest = []
    for name, module in modules.items():
        parts = packed.get(name, [name])
        if stackable(module, len(parts)):
            for place, part in enumerate(parts):
                groups[layer_type(part)].append(Member(part, module, place))
        else:
            rest.append(module)
    stacks = {}
    for kind, members in groups.items():
        members.sort(key=lambda member: block_numbers(member.name))
        if len({shapes(member) for member in members}) == 1:
            stacks[kind] = build_stack(members)
        else:  # blocks of several widths
            rest.extend(member.module for member in members)
    return stacks, rest


def stackable(module: Any, parts: int) -> bool:
    from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA

    return isinstance(module, BaseLinearLayerWithLoRA) and module.n_slices == parts


def shapes(member: Member) -> tuple[torch.Size, torch.Size]:
    return member.module.lora_a_stacked[member.place].shape, member.module.lora_b_stacked[member.place].shape


def build_stack(members: Sequence[Member]) -> Stack:
    """One stack for layers of equal shapes, whose slots become views of it."""
    first = members[0]
    a, b = (stacked(members, attribute) for attribute in ("lora_a_stacked", "lora_b_stacked"))
    h, o = widths(first)
    rank = b.shape[-1]
    rows = kept(first, "slice_lora_a", torch.arange(rank)[:, None].expand(rank, h))[:, 0]
    columns_a = kept(first, "slice_lora_a", torch.arange(h).expand(rank, h))[0]
    columns_b = kept(first, "slice_lora_b", torch.arange(o)[:, None].expand(o, rank))[:, 0]
    return Stack(
        tuple(member.name for member in members),
        h,
        o,
        a,
        b,
        slice(int(rows[0]), int(rows[-1]) + 1),
        as_slice(columns_a, a.device),
        as_slice(columns_b, a.device),
    )


def stacked(members: Sequence[Member], attribute: str) -> Tensor:
    """The slots of all members in one tensor (L, slots, 1, ...), of which each member is given its view."""
    slots = getattr(members[0].module, attribute)[members[0].place]
    whole = slots.new_zeros(len(members), *slots.shape)
    for block, (_, module, place) in enumerate(members):
        views = list(getattr(module, attribute))
        views[place] = whole[block]
        setattr(module, attribute, tuple(views))
    return whole


def widths(member: Member) -> tuple[int, int]:
    """In- and out-features of a layer before any tensor parallelism."""
    base = member.module.base_layer
    if hasattr(base, "total_num_kv_heads"):  # fewer heads than ranks are copied, which output_sizes counts as more
        q, kv = base.total_num_heads * base.head_size, base.total_num_kv_heads * base.head_size
        sizes = [q, kv, kv]
    else:
        sizes = list(getattr(base, "output_sizes", [base.output_size]))
    return base.input_size, sizes[member.place] if member.module.n_slices > 1 else sum(sizes)


def kept(member: Member, cut: str, numbers: Tensor) -> Tensor:
    """What vLLM's own slicing leaves to this rank of a factor that holds the numbers of its rows or columns."""
    _, module, place = member
    if module.tp_size == 1:
        return numbers
    if module.n_slices == 1:
        return getattr(module, cut)(numbers)
    return getattr(module, cut)([numbers if i == place else None for i in range(module.n_slices)])[place]


def as_slice(numbers: Tensor, device: torch.device) -> Kept:
    """A slice where the numbers are one range, which costs no copy."""
    start, stop = int(numbers[0]), int(numbers[-1]) + 1
    return slice(start, stop) if torch.equal(numbers, torch.arange(start, stop)) else numbers.to(device)

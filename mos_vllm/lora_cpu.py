"""A LoRA kernel for vLLM on CPU: adapters are computed at the rank that they have, their tokens in few products.

vLLM's own CPU version gathers one copy of the adapter's weights per token, at max_lora_rank, and lets requests without
an adapter read the last slot. Here tokens without an adapter are left alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms.cpu import CpuPlatform

FEW = 4  # tokens; adapters with no more in a step share their products: while decoding, most have one token each
Ranks = Mapping[int, int]  # the rank of what each slot holds; R where it is not known
Rows = tuple[int, Tensor]  # a slot, and the numbers of its tokens


class Group(Protocol):
    """Adapters whose tokens are computed together."""

    def inputs(self, x: Tensor) -> Tensor:
        """The group's rows of x (tokens, h), as `add` takes them."""

    def add(self, y: Tensor, inputs: Tensor, a: Tensor, b: Tensor, scale: float) -> None:
        """y (tokens, o) += scale * x A^T B^T in the group's rows; a (slots, 1, R, h), b (slots, 1, o, R)."""


class One:
    """One adapter with all of its tokens. rows: (m,), or a slice if these are all tokens of the step."""

    def __init__(self, slot: int, rows: Tensor | slice, ranks: Ranks) -> None:
        self.slot, self.rows, self.ranks = slot, rows, ranks

    def inputs(self, x: Tensor) -> Tensor:
        return x[self.rows]  # (m, h)

    def add(self, y: Tensor, inputs: Tensor, a: Tensor, b: Tensor, scale: float) -> None:
        rank = self.ranks.get(self.slot, a.shape[2])  # asked now: a reload can change it between two steps
        hidden = inputs @ a[self.slot, 0, :rank].T  # (m, h) -> (m, r)
        up = b[self.slot, 0, :, :rank].T  # (r, o)
        if isinstance(self.rows, slice):
            y[self.rows].addmm_(hidden, up, alpha=scale)
        else:
            y.index_add_(0, self.rows, hidden @ up, alpha=scale)


class Several:
    """Adapters with at most m tokens each, in products of G matrices.

    slots: (G,) or a range of G slots, if most of it is asked for: a range is read in place, others are copied first
    rows: (G, m) tokens of each slot, filled up with any; kept: which of the G m are no such filling
    """

    def __init__(self, found: Sequence[Rows], ranks: Ranks) -> None:
        self.ranks, self.numbers = ranks, [slot for slot, _ in found]
        low, high = self.numbers[0], self.numbers[-1] + 1
        self.slots = slice(low, high) if high - low <= 2 * len(found) else torch.tensor(self.numbers)
        tokens = dict(found)
        slots = range(low, high) if isinstance(self.slots, slice) else self.numbers
        lengths = torch.tensor([len(tokens.get(slot, ())) for slot in slots])
        real = torch.arange(int(lengths.max())) < lengths[:, None]  # (G, m)
        self.tokens = torch.cat([rows for _, rows in found])
        self.rows = torch.zeros(real.shape, dtype=torch.long)
        self.rows[real] = self.tokens
        self.kept = real.flatten().nonzero()[:, 0]

    def inputs(self, x: Tensor) -> Tensor:
        return x[self.rows]  # (G, m, h)

    def add(self, y: Tensor, inputs: Tensor, a: Tensor, b: Tensor, scale: float) -> None:
        rank = max(self.ranks.get(slot, a.shape[2]) for slot in self.numbers)  # slots of less have zeros up to there
        hidden = inputs @ a[:, 0, :rank][self.slots].mT  # (G, m, h) -> (G, m, r)
        update = (hidden @ b[:, 0, :, :rank][self.slots].mT).flatten(0, 1)  # (G, m, r) -> (G m, o)
        y.index_add_(0, self.tokens, update[self.kept], alpha=scale)


def by_slot(slots: Tensor) -> list[Rows]:
    """In the order of the slots. slots: (tokens,) the slot of each token, -1 for none"""
    return [(slot, (slots == slot).nonzero()[:, 0]) for slot in slots.unique().tolist() if slot >= 0]


def grouped(found: Sequence[Rows], tokens: int, ranks: Ranks) -> list[Group]:
    """The groups of a step with so many tokens."""
    few = [each for each in found if len(each[1]) <= FEW]
    if len(few) < 2:
        few = []
    many = [each for each in found if not few or len(each[1]) > FEW]
    groups: list[Group] = [One(slot, slice(None) if len(rows) == tokens else rows, ranks) for slot, rows in many]
    return [*groups, Several(few, ranks)] if few else groups


class GroupedLoRA(PunicaWrapperCPU):
    """Tokens grouped by adapter once per step. Slots hold A (slots, 1, R, h) and B (slots, 1, o, R).

    ranks: by slot; MosModelManager keeps it
    """

    found: list[Rows] = []  # noqa: RUF012  replaced, never changed
    groups: list[Group] = []  # noqa: RUF012  likewise
    ranks: Ranks = {}  # noqa: RUF012  likewise

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Called by vLLM before a step whose mapping of tokens to adapters differs from the one before."""
        super().update_metadata(*args, **kwargs)
        slots = self.token_lora_indices
        self.found = by_slot(slots)
        self.groups = grouped(self.found, len(slots), self.ranks)

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        """y (tokens, outputs) += scale * x A^T B^T, slice by slice."""
        for group in self.groups:
            inputs, start = group.inputs(x), 0
            for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                group.add(y[:, start : start + width], inputs, a, b, scale)
                start += width

    def add_shrink(self, y: Any, x: Tensor, lora_a_stacked: tuple[Tensor, ...], scale: float, **kwargs: Any) -> None:
        """y (slices, tokens, r) += scale * x A^T: the first half alone, as fully sharded LoRA has it."""
        for slot, rows in self.found:
            for hidden, a in zip(y, lora_a_stacked, strict=True):
                hidden[rows] += scale * (x[rows] @ a[slot, 0].T)

    def add_expand(
        self,
        y: Tensor,
        x: Any,
        lora_b_stacked: tuple[Tensor, ...],
        output_slices: tuple[int, ...],
        offset_start: int = 0,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """y (tokens, outputs) += x B^T, slice by slice from the column `offset_start` on: the second half."""
        for slot, rows in self.found:
            start = offset_start
            for hidden, b, width in zip(x, lora_b_stacked, output_slices, strict=True):
                y[rows, start : start + width] += hidden[rows].to(b.dtype) @ b[slot, 0].T
                start += width

    def add_lora_embedding(self, y: Tensor, x: Tensor, lora_b_stacked: Tensor, *args: Any, **kwargs: Any) -> None:
        """y (tokens, h) += x B^T; x (tokens, r) are the rows of A that the tokens name."""
        for slot, rows in self.found:
            y[rows] += x[rows].to(y.dtype) @ lora_b_stacked[slot, 0].T

    def add_lora_logits(
        self, y: Tensor, x: Tensor, lora_a_stacked: Tensor, lora_b_stacked: Tensor, scale: float, **kwargs: Any
    ) -> None:
        """y (rows, vocabulary) += scale * x A^T B^T, for the rows that are sampled from."""
        width = lora_b_stacked.shape[2]  # of the vocabulary, for which logits may be padded
        y, x = y.view(-1, y.shape[-1])[:, :width], x.view(-1, x.shape[-1])
        for slot, rows in by_slot(self.sampler_indices):
            y[rows] += scale * (x[rows] @ lora_a_stacked[slot, 0].T) @ lora_b_stacked[slot, 0].T


def wrapper_name(cls: type[CpuPlatform]) -> str:
    return f"{__name__}.{GroupedLoRA.__name__}"


def install() -> None:
    """Put the kernel in place of vLLM's own, in this process."""
    CpuPlatform.get_punica_wrapper = classmethod(wrapper_name)  # type: ignore[method-assign, assignment]

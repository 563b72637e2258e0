"""A LoRA kernel for vLLM on CPU: the tokens of one adapter share their matrix products.

vLLM's own CPU version gathers one copy of the adapter's weights per token, and lets requests without an adapter read
the last slot. Here tokens without an adapter are left alone.
"""

from typing import Any

from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms.cpu import CpuPlatform

Rows = Tensor | slice


class GroupedLoRA(PunicaWrapperCPU):
    """Tokens grouped by adapter once per step. Slots hold A (slots, 1, r, h) and B (slots, 1, o, r)."""

    groups: list[tuple[int, Rows]] = []  # noqa: RUF012  replaced, never changed; (slot, its rows)

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Called by vLLM before a step whose mapping of tokens to adapters differs from the one before."""
        super().update_metadata(*args, **kwargs)
        slots = self.token_lora_indices  # (tokens,), -1 for none
        self.groups = [(slot, rows(slots == slot)) for slot in slots.unique().tolist() if slot >= 0]

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
        for slot, chosen in self.groups:
            inputs, start = x[chosen], 0
            for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                update = inputs @ a[slot, 0].T @ b[slot, 0].T  # (rows, h) -> (rows, r) -> (rows, o)
                y[chosen, start : start + width] += scale * update
                start += width

    def add_shrink(self, y: Any, x: Tensor, lora_a_stacked: tuple[Tensor, ...], scale: float, **kwargs: Any) -> None:
        """y (slices, tokens, r) += scale * x A^T: the first half alone, as fully sharded LoRA has it."""
        for slot, chosen in self.groups:
            for hidden, a in zip(y, lora_a_stacked, strict=True):
                hidden[chosen] += scale * (x[chosen] @ a[slot, 0].T)

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
        for slot, chosen in self.groups:
            start = offset_start
            for hidden, b, width in zip(x, lora_b_stacked, output_slices, strict=True):
                y[chosen, start : start + width] += hidden[chosen].to(b.dtype) @ b[slot, 0].T
                start += width


def rows(chosen: Tensor) -> Rows:
    return slice(0, len(chosen)) if bool(chosen.all()) else chosen.nonzero()[:, 0]


def wrapper_name(cls: type[CpuPlatform]) -> str:
    return f"{__name__}.{GroupedLoRA.__name__}"


def install() -> None:
    """Put the kernel in place of vLLM's own, in this process."""
    CpuPlatform.get_punica_wrapper = classmethod(wrapper_name)  # type: ignore[method-assign, assignment]

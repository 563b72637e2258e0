"""A faster LoRA for vLLM on CPU; importing this module puts it in place.

vLLM's own CPU version gathers one copy of the adapter's weights per token, and lets requests without an adapter read
the last slot. Here the tokens of one adapter share two matrix products, and tokens without one are left alone.
"""

from typing import Any

from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms.cpu import CpuPlatform


class GroupedLoRA(PunicaWrapperCPU):
    """Tokens grouped by adapter once per step."""

    groups: list[tuple[int, Tensor | slice]] = []  # noqa: RUF012  replaced, never changed; (slot, its rows)

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Called by vLLM before a step whose mapping of tokens to adapters differs from the one before."""
        super().update_metadata(*args, **kwargs)
        slots = self.token_lora_indices  # (tokens,), -1 for none
        self.groups = [(slot, _rows(slots == slot)) for slot in slots.unique().tolist() if slot >= 0]

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
        """y (tokens, outputs) += scale * x A^T B^T, slice by slice; A is (slots, 1, r, h), B (slots, 1, o, r)."""
        for slot, rows in self.groups:
            inputs, start = x[rows], 0
            for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                update = inputs @ a[slot, 0].T @ b[slot, 0].T  # (rows, h) -> (rows, r) -> (rows, o)
                y[rows, start : start + width] += scale * update
                start += width


def _rows(chosen: Tensor) -> Tensor | slice:
    return slice(0, len(chosen)) if bool(chosen.all()) else chosen.nonzero()[:, 0]


def _wrapper_name(cls: type[CpuPlatform]) -> str:
    return f"{__name__}.{GroupedLoRA.__name__}"


CpuPlatform.get_punica_wrapper = classmethod(_wrapper_name)  # type: ignore[method-assign, assignment]

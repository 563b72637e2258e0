"""A faster LoRA for vLLM on a CPU; `private.grouped_lora` puts it in place.

vLLM's own version for CPUs copies the adapter's weights for every token. Tokens without an adapter read the last slot.
Here all tokens of an adapter share two matrix products, and tokens without one are left alone.
"""

from typing import Any

from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU


class GroupedLoRA(PunicaWrapperCPU):
    """vLLM's wrapper for CPUs, with the tokens grouped by adapter once a step."""

    groups: list[tuple[int, Tensor | slice]] = []  # noqa: RUF012  (slot, its rows); replaced, never changed

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Group the tokens. vLLM calls this before a step if other tokens have other adapters than in the last step."""
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

"""Adapters on the device, beside the slots: memory that is taken once, before vLLM sizes its KV cache."""

from collections import OrderedDict

import torch
from torch import Tensor


class DeviceStore:
    """Adapters by their keys; the least recently used make room.

    Sizes differ between adapters, so that each takes the first hole that is wide enough. With adapters of one size no
    hole is ever lost.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.memory = torch.empty(size, dtype=torch.uint8, device=device)
        # (start, size) in bytes; adapters from the least to the most recently used, holes in order
        self.held: OrderedDict[int, tuple[int, int]] = OrderedDict()
        self.holes: list[tuple[int, int]] = [(0, size)] if size else []
        self.pinned: set[int] = set()
        self.used = 0  # bytes

    def get(self, adapter: int) -> Tensor | None:
        """The adapter's bytes on the device, if they are there."""
        if adapter not in self.held:
            return None
        self.held.move_to_end(adapter)
        start, size = self.held[adapter]
        return self.memory[start : start + size]

    def put(self, adapter: int, memory: Tensor) -> Tensor | None:
        """Copy an adapter's bytes to the device; None if it cannot be given room there.

        memory: (bytes,) uint8, a multiple of ALIGNMENT
        """
        start = self._room(len(memory))
        if start is None:
            return None
        self.held[adapter] = (start, len(memory))
        self.used += len(memory)
        return self.memory[start : start + len(memory)].copy_(memory, non_blocking=True)

    def drop(self, adapter: int) -> None:
        """Forget an adapter; one that is not here is no error."""
        self.pinned.discard(adapter)
        if hole := self.held.pop(adapter, None):
            self.holes = merged(sorted([*self.holes, hole]))
            self.used -= hole[1]

    def _room(self, needed: int) -> int | None:
        """Take `needed` bytes, for which the least recently used adapters leave that are not pinned."""
        while True:
            for i, (start, size) in enumerate(self.holes):
                if size >= needed:
                    rest = [(start + needed, size - needed)] if size > needed else []
                    self.holes[i : i + 1] = rest
                    return start
            oldest = next((adapter for adapter in self.held if adapter not in self.pinned), None)
            if oldest is None or needed > len(self.memory):
                return None
            self.drop(oldest)


def merged(holes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Holes in order, with neighbours made one."""
    found = holes[:1]
    for start, size in holes[1:]:
        last, width = found[-1]
        found[-1:] = [(last, width + size)] if last + width == start else [(last, width), (start, size)]
    return found

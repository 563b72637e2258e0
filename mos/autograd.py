"""Gradients of pools that many blocks share: collected from the blocks, then added to the pool at once.

A gradient per block would be as large as the pool and mostly zero, so the cost would grow with the square of the
number of blocks. Instead each block takes a stand-in for its factor, which carries no values, only the routing of
gradients: the gradient of a factor goes to its stand-in, and those of all stand-ins of a pair of pools are scattered
together.
"""

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mos.common import private
from mos.shards import assemble

Pair = tuple[Tensor, Tensor]  # of A and of B


def scatter(grads: Sequence[Tensor | None], index: Tensor, shape: torch.Size) -> Tensor | None:
    """The gradient of a pool of `shape` (n, s) from those of L factors (r, l * s): the transpose of `assemble`.

    index: (L * r, l) int64, of all factors; those without a gradient add none, and without any the pool has none
    """
    rows = index.tensor_split(len(grads))  # (r, l) each
    pairs = [(grad, own) for grad, own in zip(grads, rows, strict=True) if grad is not None]
    if not pairs:
        return None
    shards = torch.cat([grad.reshape(-1, shape[1]) for grad, _ in pairs])  # (r, l*s) each -> (L*r*l, s)
    if len(pairs) < len(grads):
        index = torch.cat([own for _, own in pairs])
    return shards.new_zeros(shape).index_add_(0, index.flatten(), shards)


class PoolGradient(torch.autograd.Function):
    """Stand-ins for the factors of many blocks, whose gradients it adds to their pools."""

    @staticmethod
    def forward(
        ctx: Any, pool_a: Tensor, pool_b: Tensor, rank: int, shards: int, indices: list[Tensor | None]
    ) -> tuple[Tensor, ...]:
        """Stand-ins for A (r, h) and B (r, o) of each block in turn; views that take no memory.

        indices: for each block its (2, r, l), or None, to be filled in by the block that takes the stand-ins
        """
        ctx.set_materialize_grads(False)
        ctx.indices = indices
        ctx.sizes = pool_a.shape, pool_b.shape
        blank = [pool.detach().as_strided((rank, shards * pool.shape[1]), (0, 0)) for pool in (pool_a, pool_b)]
        return tuple(stand_in.view_as(stand_in) for _ in indices for stand_in in blank)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        taken = [
            (a, b, index)
            for a, b, index in zip(grads[0::2], grads[1::2], ctx.indices, strict=True)
            if index is not None
        ]
        index = torch.cat([index for *_, index in taken], 1).long()  # (2, L*r, l); int32 is slow in index_add_
        grad_a = scatter([a for a, *_ in taken], index[0], ctx.sizes[0])
        grad_b = scatter([b for _, b, _ in taken], index[1], ctx.sizes[1])
        return grad_a, grad_b, None, None, None


class Assemble(torch.autograd.Function):
    """The factors of one block: their values come from the pools, their gradients go to the stand-ins as they are."""

    @staticmethod
    def forward(
        ctx: Any,
        stand_in_a: Tensor,
        stand_in_b: Tensor,
        pool_a: Tensor,
        pool_b: Tensor,
        index: Tensor,
        refusal: str | None,
    ) -> Pair:
        """pool_a, pool_b: (n, s), detached; index: (2, r, l); returns the rows of A (r, h), the columns of B (r, o).

        refusal: why backward would give wrong gradients; it raises RuntimeError then, if it runs
        """
        if pool_a.requires_grad or pool_b.requires_grad:
            raise RuntimeError("The gradient of a pool goes through its stand-in: pass the pool detached.")
        ctx.set_materialize_grads(False)
        ctx.refusal = refusal
        return assemble(pool_a, index[0]), assemble(pool_b, index[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.refusal:
            raise RuntimeError(ctx.refusal)
        return *grads, None, None, None, None


class StandIns(NamedTuple):
    """The stand-ins of one forward pass that no block has taken yet; `indices` is filled as they are, from the end."""

    pools: Pair
    indices: list[Tensor | None]
    pairs: list[Pair]

    @classmethod
    def of(cls, pools: Pair, index: Tensor, blocks: int) -> "StandIns":
        indices: list[Tensor | None] = [None] * blocks
        made = PoolGradient.apply(*pools, *index.shape[1:], indices)
        return cls(pools, indices, list(zip(made[0::2], made[1::2], strict=True)))

    def serve(self, pools: Pair) -> bool:
        """Whether one is left, and its gradient will reach these pools."""
        return bool(self.pairs) and all(
            own is pool and stand_in.dtype == pool.dtype and stand_in.requires_grad == pool.requires_grad
            for own, pool, stand_in in zip(self.pools, pools, self.pairs[-1], strict=True)
        )


class Collector(threading.local):
    """Hands out stand-ins to the blocks that share a pair of pools; to each thread its own."""

    left: StandIns | None = None

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks

    def take(self, pools: Pair, index: Tensor) -> Pair:
        """What receives the gradients of the factors that a block assembles by `index` (2, r, l).

        The first block of a forward pass makes the stand-ins of all. Leftovers of an earlier pass are safe, as they
        carry no values. A recomputation within a backward pass makes its own, since each is differentiated apart.
        """
        if private.in_backward_pass():
            return self._pop(StandIns.of(pools, index, 1), index)
        if self.left is None or not self.left.serve(pools):
            self.left = StandIns.of(pools, index, self.blocks)
        return self._pop(self.left, index)

    @staticmethod
    def _pop(stand_ins: StandIns, index: Tensor) -> Pair:
        stand_ins.indices[len(stand_ins.pairs) - 1] = index
        return stand_ins.pairs.pop()

    def __reduce__(self) -> tuple[Any, ...]:
        """What is copied and pickled: not what a forward pass leaves behind."""
        return Collector, (self.blocks,)

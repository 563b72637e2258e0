"""Gradients of pools that many blocks share: collected from the blocks, then added to the pool at once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mos.shards import assemble, low_rank


def scatter(grads: Sequence[Tensor | None], indices: Sequence[Tensor | None], shape: torch.Size) -> Tensor | None:
    """The gradient of a pool of `shape` (n, s) from those of factors (r, l * s): the transpose of `assemble`.

    grads and indices (r, l) belong together, block by block; without any gradient, there is none of the pool
    """
    total = None
    for grad, index in zip(grads, indices, strict=True):
        if grad is not None and index is not None:
            rows = grad.reshape(-1, shape[1])  # (r, l*s) -> (r*l, s)
            total = grad.new_zeros(shape) if total is None else total
            total.index_add_(0, index.flatten().long(), rows)  # int32 is slow here
    return total


class PoolGradient(torch.autograd.Function):
    """Collects the gradients of many blocks' factors, then adds all of them to their pools at once.

    Were each block to return a gradient of its pools, every one would be as large as the whole pool and mostly zero,
    and the cost would grow with the square of the number of blocks. So each takes a stand-in for its factor, without
    content or memory, and returns a gradient of the factor's size to it.
    """

    @staticmethod
    def forward(
        ctx: Any, pool_a: Tensor, pool_b: Tensor, rank: int, shards: int, indices: list[Tensor | None]
    ) -> tuple[Tensor, ...]:
        """Stand-ins for A (r, h) and B (r, o) of each block in turn.

        indices: for each block its (2, r, l), or None, to be filled in by the block that takes the stand-ins
        """
        ctx.set_materialize_grads(False)
        ctx.indices = indices
        ctx.sizes = pool_a.shape, pool_b.shape
        blank = [pool.new_zeros(()).expand(rank, shards * pool.shape[1]) for pool in (pool_a, pool_b)]
        return tuple(stand_in.view_as(stand_in) for _ in indices for stand_in in blank)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        sides = (grads[0::2], grads[1::2])
        indices = ([None if index is None else index[i] for index in ctx.indices] for i in range(2))
        grad_a, grad_b = map(scatter, sides, indices, ctx.sizes)
        return grad_a, grad_b, None, None, None


class LowRankUpdate(torch.autograd.Function):
    """x A^T diag(scale) B^T with the factors assembled from pools, in forward and once more in backward.

    Neither factor is kept for backward: only the pools, which all blocks share, and the tokens in rank space.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        stand_in_a: Tensor,
        stand_in_b: Tensor,
        pools: tuple[Tensor, Tensor],
        index: Tensor,
        scale: Tensor,
        refusal: str | None,
    ) -> Tensor:
        """x: (t, h); pools: (n, h/l), (n, o/l); index: (2, r, l); scale: (r,); returns (t, o) in the type of x.

        stand_in_a, stand_in_b: what receives the gradients of the factors, from `PoolGradient`
        refusal: why backward would give wrong gradients; it raises RuntimeError then, if it runs.
        """
        ctx.refusal = refusal
        a, b = (assemble(pool, i).to(x.dtype) for pool, i in zip(pools, index, strict=True))
        y, hidden = low_rank(x, a, b, scale)
        ctx.save_for_backward(x, hidden, *pools, index, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.refusal:
            raise RuntimeError(ctx.refusal)
        x, hidden, pool_a, pool_b, index, scale = ctx.saved_tensors
        grad_x = grad_a = grad_b = None
        if ctx.needs_input_grad[2]:
            grad_b = (hidden.T @ grad).to(pool_b.dtype)  # (r, t) (t, o) -> (r, o)
        grad_hidden = (grad @ assemble(pool_b, index[1]).to(grad.dtype).T) * scale  # (t, o) (o, r) -> (t, r)
        if ctx.needs_input_grad[1]:
            grad_a = (grad_hidden.T @ x).to(pool_a.dtype)  # (r, t) (t, h) -> (r, h)
        if ctx.needs_input_grad[0]:
            grad_x = grad_hidden @ assemble(pool_a, index[0]).to(grad.dtype)  # (t, r) (r, h) -> (t, h)
        return grad_x, grad_a, grad_b, None, None, None, None

"""The equations of MoS, as pure functions (Sec. 3 of the paper).

Symbols: L blocks; h in-features, o out-features; r active rank; e equivalent rank; l shards per vector; p private
rank. A pool holds n = e * L * l shards, the public ones first, then p * l private ones for each block.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class PoolLayout:
    """The sizes of the pools of one layer type: `blocks` (L), `equivalent_rank` (e), `shards_per_vector` (l),
    `private_rank` (p) and the active rank `r` (None: the whole pool)."""

    blocks: int
    equivalent_rank: int
    shards_per_vector: int
    private_rank: int
    r: int | None

    @property
    def rank(self) -> int:
        """Vectors per block: r, or e * L for pure sharing (Sec. 3.1, Eq. 2)."""
        return self.equivalent_rank * self.blocks if self.r is None else self.r

    @property
    def public(self) -> int:
        """Number of public shards, (e - p) * L * l (Sec. 3.5)."""
        return (self.equivalent_rank - self.private_rank) * self.blocks * self.shards_per_vector

    @property
    def size(self) -> int:
        """Number of shards n = e * L * l of the A pool, and of the B pool."""
        return self.equivalent_rank * self.blocks * self.shards_per_vector

    def private(self, block: int) -> Tensor:
        """Indices (p * l,) of the shards that no other block reads (Sec. 3.5)."""
        count = self.private_rank * self.shards_per_vector
        return torch.arange(self.public + block * count, self.public + (block + 1) * count, device="cpu")

    def check(self, layer_type: str, in_features: int, out_features: int) -> None:
        """Raises ValueError where the pools of `layer_type` cannot be built, or cannot serve `r` vectors."""
        shards, e, p = self.shards_per_vector, self.equivalent_rank, self.private_rank
        for name, width in (("in_features", in_features), ("out_features", out_features)):
            if width % shards:
                raise ValueError(
                    f"shards_per_vector={shards} does not divide {name}={width} of '{layer_type}'. "
                    f"Use a divisor of {math.gcd(in_features, out_features)}, or leave the layer out of target_modules."
                )
        if (self.rank - p) * shards > self.public:
            raise ValueError(
                f"r={self.rank} needs {(self.rank - p) * shards} different public shards for '{layer_type}', but "
                f"equivalent_rank={e}, private_rank={p}, shards_per_vector={shards} over {self.blocks} block(s) give "
                f"{self.public}. Use r <= {p + (e - p) * self.blocks}, or raise equivalent_rank."
            )


def init_bound(in_features: int) -> float:
    """Half-width of the uniform distribution of the A pool (Sec. 3.5, Initialization).

    It uses the full h, not the h / l of a shard, so that an assembled row is distributed as in vanilla LoRA
    (kaiming-uniform with a = sqrt(5)).
    """
    return 1 / math.sqrt(in_features)


def stream(seed: int, *names: str) -> torch.Generator:
    """A CPU generator of its own for `names` (layer, factor), so that no order of construction changes a draw."""
    digest = hashlib.blake2b("\0".join((str(seed), *names)).encode(), digest_size=8).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "big"))


def sample_indices(layout: PoolLayout, block: int, generator: torch.Generator) -> Tensor:
    """Draw the index matrix I^k of block k (Sec. 3.2 to 3.5, Eqs. 3 to 5).

    returns (r, l) int64: r - p rows drawn without replacement from the public shards, then the block's p private rows;
    if `layout.r` is None, the whole pool in order (Sec. 3.1, Eq. 2)
    """
    shards = layout.shards_per_vector
    if layout.r is None:
        return torch.arange(layout.size, device="cpu").view(-1, shards)  # (e*L*l,) -> (e*L, l)
    count = (layout.rank - layout.private_rank) * shards
    public = torch.randperm(layout.public, generator=generator, device="cpu")[:count]
    return torch.cat([public, layout.private(block)]).view(-1, shards)  # (r*l,) -> (r, l)


def compact(index: Tensor) -> Tensor:
    """Indices (int32) as they are saved: int16 where that is wide enough."""
    fits = not index.is_meta and int(index.max()) <= torch.iinfo(torch.int16).max
    return index.to(torch.int16) if fits else index


def assemble(pool: Tensor, index: Tensor) -> Tensor:
    """Concatenate the shards that `index` picks into the vectors of one factor of a block (Sec. 3.4, Eqs. 4 and 5).

    pool:  (n, s) shards of one layer type; s = h / l for A, o / l for B
    index: (r, l), int32 or int64 in [0, n); row j lists the shards of vector j, left to right
    returns (r, s * l): the rows of A, or the columns of B
    """
    rows = pool.index_select(0, index.flatten())  # (r*l, s)
    return rows.view(index.shape[0], -1)  # (r, l*s)


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


def low_rank(x: Tensor, a: Tensor, b: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """One block's update of tokens x (..., h), scaled per vector pair (Eq. 1), and x A^T diag(scale).

    a: (r, h); b: (r, o), the columns of B; scale: (r,); returns (..., o) and (..., r)
    """
    hidden = F.linear(x, a) * scale  # (..., h) (h, r) -> (..., r)
    return hidden @ b, hidden  # (..., r) (r, o) -> (..., o)


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

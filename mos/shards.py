"""The equations of MoS, as pure functions (Sec. 3 of the paper).

Symbols: L blocks; h in-features, o out-features; r active rank; e equivalent rank; l shards per vector; p private
rank. A pool holds n = e * L * l shards, the public ones first, then p * l private ones for each block.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


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


def assemble(pool: Tensor, index: Tensor) -> Tensor:
    """Concatenate the shards that `index` picks into the vectors of one factor of a block (Sec. 3.4, Eqs. 4 and 5).

    pool:  (n, s) shards of one layer type; s = h / l for A, o / l for B
    index: (r, l), int32 or int64 in [0, n); row j lists the shards of vector j, left to right
    returns (r, s * l): the rows of A, or the columns of B
    """
    return torch.embedding(pool, index).flatten(1)  # (r, l, s) -> (r, l*s)

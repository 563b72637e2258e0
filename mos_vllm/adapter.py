"""A saved MoS adapter as a server holds it: the pools of each layer type, and the indices of its blocks into them.

Symbols: L blocks; h in-features, o out-features; r active rank; e equivalent rank; l shards per vector. A pool holds
n = e * L * l shards (Sec. 3 of the paper).
"""

import re
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

POOL_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NAMES = 1 << 14  # of layers, for which answers are kept: each adapter asks for those of the same model
INDEX_DTYPES = (torch.int16, torch.int32, torch.int64)


class AdapterError(ValueError):
    """A MoS adapter that cannot be served. The message is one sentence that begins with "MoS adapter"."""

    def __init__(self, folder: object, reason: str) -> None:
        super().__init__(f"MoS adapter '{folder}' {reason}")


@dataclass(frozen=True)
class Pools:
    """The two pools of one layer type, and what its L adapted blocks read of them.

    modules: (L,) names of the adapted layers, in the order of their blocks
    a: (n, h/l), b: (n, o/l) shards, floating point
    index: (2, L, r, l) integers in [0, n); index[0, k] is I_a of block k, index[1, k] is I_b (Eq. 4)
    scale: (L, r) frozen factors of the vector pairs ("+ Random scaling", Table 1); None: all are one
    """

    modules: tuple[str, ...]
    a: Tensor
    b: Tensor
    index: Tensor
    scale: Tensor | None

    @property
    def rank(self) -> int:
        """r, the rank of each block's update."""
        return self.index.shape[2]

    @property
    def equivalent_rank(self) -> int:
        """e, the rank of a LoRA with as many parameters: n / (L l), rounded up."""
        _, blocks, _, shards = self.index.shape
        return -(-len(self.a) // (blocks * shards))

    @property
    def in_features(self) -> int:
        """h"""
        return self.a.shape[1] * self.index.shape[3]

    @property
    def out_features(self) -> int:
        """o"""
        return self.b.shape[1] * self.index.shape[3]


@dataclass(frozen=True)
class Adapter:
    """What one adapter folder holds: `pools` of each layer type, and `alpha`; a block's update is (alpha / r) B A."""

    alpha: float
    pools: tuple[Pools, ...]


@lru_cache(NAMES)
def layer_type(name: str) -> str:
    """The name without its block numbers: layers of one type share pools.   layers.3.mlp.up -> layers.*.mlp.up"""
    return re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", name)


def block_numbers(name: str) -> list[int]:
    """The numbers in the name, which order the layers of a type."""
    return [int(part) for part in name.split(".") if part.isdecimal()]


Shape = tuple[int, ...]


def check_shapes(folder: object, kind: str, a: Shape, b: Shape, index: Shape, max_rank: int | None) -> None:
    """Check one layer type before its tensors are read.

    a, b: shapes of the pools; index: (2, L, r, l); max_rank: the largest rank that the server takes, None: any

    Raises:
        AdapterError: the shapes contradict each other, or the rank is too large.
    """
    if len(a) != 2 or len(b) != 2 or a[0] != b[0] or 0 in (*a, *b, *index):
        raise AdapterError(folder, f"has pools of shapes {a} and {b} for '{kind}', which do not belong together.")
    _, blocks, rank, shards = index
    for name, held in (("r", rank), ("equivalent rank", -(-a[0] // (blocks * shards)))):
        if max_rank is not None and held > max_rank:
            raise AdapterError(
                folder,
                f"is too large: {name}={held} of '{kind}' is above max_lora_rank={max_rank}. Raise --max-lora-rank.",
            )


def check_values(folder: object, kind: str, pools: Pools) -> None:
    """Check what only the tensors tell.

    Raises:
        AdapterError: a wrong type, an index outside of its pool, or a number that is not finite.
    """
    floats = [tensor for tensor in (pools.a, pools.b, pools.scale) if tensor is not None]
    if pools.index.dtype not in INDEX_DTYPES or any(tensor.dtype not in POOL_DTYPES for tensor in floats):
        raise AdapterError(folder, f"has tensors of '{kind}' in types that MoS does not save.")
    low, high = (int(bound) for bound in pools.index.aminmax())
    if low < 0 or high >= len(pools.a):
        raise AdapterError(
            folder, f"reads shards {low} to {high} of '{kind}', which has {len(pools.a)}: its file is damaged."
        )
    # the extremes of a tensor are finite only if all of it is, and they cost one pass
    if not all(bound.isfinite() for tensor in floats for bound in tensor.aminmax()):
        raise AdapterError(folder, f"holds numbers of '{kind}' that are not finite: its training diverged.")

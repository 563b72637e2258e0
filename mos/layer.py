"""The MoS layer: pools, indices, and how the two factors of a block come out of them."""

import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mos.autograd import LowRankUpdate, PoolGradient
from mos.common import private
from mos.common.layer import LowRankLayer, require_finite
from mos.common.private import BufferDict
from mos.config import MosConfig
from mos.shards import PoolLayout, assemble, init_bound, low_rank, sample_indices
from mos.streams import stream

FLEETING = ("mos_cache", "mos_stand_ins")


class Place(NamedTuple):
    """Where a layer stands among those of its type: its own name, its block k, its pools' layout, and their host."""

    name: str
    block: int
    layout: PoolLayout
    host: str


class Assembled(NamedTuple):
    """Factors kept between forward passes, with the state of the tensors they were made of.

    The tensors are kept too, lest their identities be reused.
    """

    sources: tuple[Tensor, ...]
    state: tuple[Any, ...]
    factors: tuple[Tensor, Tensor, Tensor]


class StandIns(NamedTuple):
    """The stand-ins of one forward pass that no block has taken yet; `indices` is filled as they are, from the end."""

    pools: tuple[Tensor, ...]
    indices: list[Tensor | None]
    pairs: list[tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, pools: tuple[Tensor, ...], rank: int, index: Tensor, blocks: int) -> "StandIns":
        indices: list[Tensor | None] = [None] * blocks
        made = PoolGradient.apply(*pools, rank, index.shape[2], indices)
        return cls(pools, indices, list(zip(made[0::2], made[1::2], strict=True)))

    def serve(self, pools: tuple[Tensor, ...]) -> bool:
        """Whether one is left, and its gradient will reach these pools."""
        return bool(self.pairs) and all(
            own is pool and stand_in.dtype == pool.dtype and stand_in.requires_grad == pool.requires_grad
            for own, pool, stand_in in zip(self.pools, pools, self.pairs[-1], strict=True)
        )


def hosted(pools: nn.ParameterDict, adapter: str) -> Tensor:
    """The pool. Accelerate reloads offloaded weights before a module's forward; a ParameterDict has none, so read
    the hook's copy."""
    return private.offloaded_value(pools, adapter) if is_offloaded(pools, adapter) else pools[adapter]


def is_offloaded(pools: nn.ParameterDict, adapter: str) -> bool:
    return pools[adapter].is_meta and private.offload_hook(pools) is not None


class MosLayer(LowRankLayer):
    """A linear layer of block k that adds alpha / r * B^k A^k, both assembled from the pools of its type (Eq. 5).

    The first targeted layer of a type hosts the pools; the others refer to it without registering it, so that every
    tensor has one key and one owner.
    """

    adapter_layer_names = ("mos_A", "mos_B")
    other_param_names = (*LowRankLayer.other_param_names, "mos_index", "mos_scale", "blocks", *FLEETING, "mos_host")

    def __init__(self, base_layer: nn.Module, **kwargs: Any) -> None:
        super().__init__(base_layer, **kwargs)
        self.mos_A = nn.ParameterDict()  # (n, h/l), on the host only
        self.mos_B = nn.ParameterDict()  # (n, o/l), on the host only
        self.mos_index = BufferDict(persistent=True)  # (2, r, l): of A and of B
        self.mos_scale = BufferDict(persistent=True)  # (r,): ones, or the random scales
        self.mos_host: dict[str, MosLayer] = {}
        self.blocks: dict[str, int] = {}
        self.mos_cache: dict[str, Assembled] = {}
        self.mos_stand_ins: dict[str, StandIns] = {}  # on the host only

    def rank(self, config: MosConfig, shared: Place) -> int:
        return shared.layout.rank

    def create(self, adapter: str, config: MosConfig, shared: Place) -> None:
        self.blocks[adapter] = shared.layout.blocks
        self.mos_index[adapter] = self._draw_indices(config, shared)
        self.mos_scale[adapter] = self._draw_scales(config, shared)
        if shared.host == shared.name:
            self._create_pools(adapter, config, shared.layout)

    def _draw_indices(self, config: MosConfig, place: Place) -> Tensor:
        """Sec. 3.2 to 3.5; returns (2, r, l) int32, which every communication library can broadcast."""
        sides = ("A", "B") if config.pair_dissociation else ("A", "A")
        draws = [
            sample_indices(place.layout, place.block, stream(config.index_seed, place.name, side)) for side in sides
        ]
        return torch.stack(draws).int()

    def _draw_scales(self, config: MosConfig, place: Place) -> Tensor:
        """The frozen scale s_i^k of each vector pair (Sec. 2, Random Scaling), or ones; returns (r,)."""
        ones = torch.ones(place.layout.rank, device="cpu")
        if not config.random_scaling:
            return ones
        return ones.normal_(config.scale_mean, config.scale_std, generator=stream(config.index_seed, place.name, "s"))

    def _create_pools(self, adapter: str, config: MosConfig, layout: PoolLayout) -> None:
        """A uniform, B zero (Sec. 3.5, Initialization); B as `nn.Linear` would be with `init_weights=False`."""
        shards, bound = layout.shards_per_vector, init_bound(self.in_features)
        self.mos_A[adapter] = nn.Parameter(torch.empty(layout.size, self.in_features // shards))
        self.mos_B[adapter] = nn.Parameter(torch.empty(layout.size, self.out_features // shards))
        nn.init.uniform_(self.mos_A[adapter], -bound, bound)
        bound = 0.0 if config.init_weights else 1 / math.sqrt(layout.rank)
        nn.init.uniform_(self.mos_B[adapter], -bound, bound)

    def _get_available_adapters(self) -> set[str]:
        return set(self.scaling)

    def hosted_pools(self, adapter: str) -> tuple[Tensor, Tensor]:
        """The A pool (n, h/l) and the B pool (n, o/l) where they are; from disk or the CPU, if offloaded.

        Raises RuntimeError if they are sharded over processes where this layer cannot gather them.
        """
        host = self.mos_host[adapter]
        pool_a, pool_b = hosted(host.mos_A, adapter), hosted(host.mos_B, adapter)
        if isinstance(pool_a, DTensor):
            raise RuntimeError(
                f"The pools of adapter '{adapter}' are sharded with another block (FSDP2), but all blocks read them. "
                "Pass them to fully_shard as ignored_params and average their gradients, or wrap the whole model once."
            )
        return pool_a, pool_b

    def pools(self, adapter: str) -> tuple[Tensor, Tensor]:
        """The same on this layer's device."""
        pool_a, pool_b = self.hosted_pools(adapter)
        device = self.mos_index[adapter].device
        return pool_a.to(device), pool_b.to(device)

    def factors(self, adapter: str) -> tuple[Tensor, Tensor]:
        """A (r, h), its rows times the random scales, and B (o, r)."""
        pool_a, pool_b = self.pools(adapter)
        index_a, index_b = self.mos_index[adapter]
        scale = self.mos_scale[adapter].to(pool_a.dtype)
        return assemble(pool_a, index_a) * scale[:, None], assemble(pool_b, index_b).T

    def update(self, x: Tensor, adapter: str) -> Tensor:
        pools = self.hosted_pools(adapter)
        dtype = pools[0].dtype
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        x = self._cast_input_dtype(x, dtype)
        if not self.training and not (torch.is_grad_enabled() and pools[0].requires_grad):
            return low_rank(x, *self._assembled(adapter, x.dtype, *pools))[0]
        if is_offloaded(self.mos_host[adapter].mos_A, adapter):
            raise RuntimeError(
                f"The pools of adapter '{adapter}' are offloaded and cannot be trained; keep them in memory."
            )
        self.mos_cache.pop(adapter, None)
        x = self.dropout[adapter](x)
        index, scale = self.mos_index[adapter], self._scale(adapter, x.dtype)
        pool_a, pool_b = (pool.to(index.device) for pool in pools)
        if torch.compiler.is_compiling():  # which finds its own way to save memory
            return low_rank(x, assemble(pool_a, index[0]).to(dtype), assemble(pool_b, index[1]).to(dtype), scale)[0]
        self.note_ddp()
        stand_ins = self._stand_ins(adapter, pool_a, pool_b)
        tokens, pools = x.flatten(0, -2), (pool_a.detach(), pool_b.detach())  # (..., h) -> (t, h)
        y = LowRankUpdate.apply(tokens, *stand_ins, pools, index, scale, self.refusal())
        return cast(Tensor, y).view(*x.shape[:-1], self.out_features)  # (t, o) -> (..., o)

    def _stand_ins(self, adapter: str, *pools: Tensor) -> tuple[Tensor, Tensor]:
        """What receives the gradients of this block's factors.

        The host, which runs first, makes them for all blocks of a forward pass. A block that finds none left, or some
        of other pools, makes its own, as in the recomputations of checkpointing. Those of an earlier pass are as right,
        since they have no content.
        """
        host = self.mos_host[adapter]
        if host is self and torch.is_grad_enabled():
            self.mos_stand_ins[adapter] = StandIns.of(
                pools, self.r[adapter], self.mos_index[adapter], self.blocks[adapter]
            )
        left = host.mos_stand_ins.get(adapter)
        if left is None or not left.serve(pools):
            left = StandIns.of(pools, self.r[adapter], self.mos_index[adapter], 1)
        left.indices[len(left.pairs) - 1] = self.mos_index[adapter]
        return left.pairs.pop()

    def _scale(self, adapter: str, dtype: torch.dtype) -> Tensor:
        """alpha / r times the scale of each vector pair; returns (r,)."""
        return (self.mos_scale[adapter] * self.scaling[adapter]).to(dtype)

    def _assembled(self, adapter: str, dtype: torch.dtype, *pools: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `low_rank` needs besides the tokens, kept until something it is made of changes.

        A change is a new tensor, new data, or one more write to the same data, which torch counts (but not through
        `.data`). Tensors made in inference mode are not counted, so nothing is kept of them; nor of offloaded pools.
        """
        sources = (*pools, self.mos_index[adapter], self.mos_scale[adapter])
        offloaded = is_offloaded(self.mos_host[adapter].mos_A, adapter)
        if torch.compiler.is_compiling() or offloaded or any(map(Tensor.is_inference, sources)):
            return self._assemble(adapter, dtype, *pools)
        state = (dtype, self.scaling[adapter], *[(id(s), s._version, s.data_ptr()) for s in sources])
        kept = self.mos_cache.get(adapter)
        if kept is None or kept.state != state:
            kept = self.mos_cache[adapter] = Assembled(sources, state, self._assemble(adapter, dtype, *pools))
        return kept.factors

    @torch.no_grad()
    def _assemble(self, adapter: str, dtype: torch.dtype, *pools: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        index = self.mos_index[adapter]
        a, b = (assemble(pool.to(index.device), i).to(dtype) for pool, i in zip(pools, index, strict=True))
        return a, b, self._scale(adapter, dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """As for every layer; with `safe_merge` also shards that no block selected must be finite."""
        for adapter in self.active_adapters if adapter_names is None else adapter_names:
            if safe_merge and adapter in self.scaling:
                require_finite(adapter, *self.pools(adapter))
        super().merge(safe_merge, adapter_names)

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: not what a forward pass leaves behind."""
        return self.__dict__ | {name: {} for name in FLEETING}

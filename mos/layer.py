"""The MoS layer: the pools that it shares with the other blocks, its indices, and the factors that come out of them."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mos.autograd import Assemble, Collector, Pair
from mos.common import private
from mos.common.layer import LowRankLayer, require_finite
from mos.common.parameters import AdapterParameters, Weight
from mos.common.private import BufferDict
from mos.config import MosConfig
from mos.shards import PoolLayout, assemble, init_bound, sample_indices
from mos.streams import stream

TORN = (
    "The pools of adapter '{adapter}' are no longer the same for all blocks: something has replaced or sharded them in "
    "some of the blocks, so each would train pools of its own. Do that to the whole model at once."
)


class Pool(Weight):
    """The shards (n, s) of one layer type.

    It is called, rather than read, so that the hooks of those who keep weights elsewhere (accelerate) bring it here.
    """

    def forward(self, index: Tensor) -> Tensor:
        """One factor, (r, l * s), on the device of `index` (r, l)."""
        weight = self.weight
        if weight.device == index.device:
            return assemble(weight, index)
        return assemble(weight, index.to(weight.device)).to(index.device)


class Group:
    """The layers of one type, which share pools: how large these are, and the layers built so far.

    layers: how many there are; fewer than blocks if a layer holds several (experts)
    """

    def __init__(self, layout: PoolLayout, layers: int) -> None:
        self.layout = layout
        self.layers: list[MosLayer] = []
        self.collector = Collector(layers)


class Place(NamedTuple):
    """Where a layer stands in its group: its name, and its block k (the first, if it holds several)."""

    name: str
    block: int
    group: Group


class MosLayer(LowRankLayer):
    """A linear layer of block k that adds alpha / r * B^k A^k, both assembled from the pools of its type (Eq. 5).

    Every layer of a type registers the same pools, so they live as long as one of the layers does. A file has them
    once, under the name of the first layer.
    """

    adapter_layer_names = ("mos_A", "mos_B")
    other_param_names = (*LowRankLayer.other_param_names, "mos_index", "mos_scale", "scaled", "collectors")

    def __init__(self, base_layer: nn.Module, **kwargs: Any) -> None:
        super().__init__(base_layer, **kwargs)
        self.mos_A = AdapterParameters(Pool)  # (n, h/l)
        self.mos_B = AdapterParameters(Pool)  # (n, o/l)
        self.mos_index = BufferDict(persistent=True)  # (2, r, l): of A and of B
        self.mos_scale = BufferDict(persistent=True)  # (r,): ones, or the random scales
        self.scaled: dict[str, bool] = {}  # whether the scales are others than ones
        self.collectors: dict[str, Collector] = {}
        self.register_load_state_dict_post_hook(note_scales)

    def rank(self, config: MosConfig, shared: Place) -> int:
        return shared.group.layout.rank

    def create(self, adapter: str, config: MosConfig, shared: Place) -> None:
        group = shared.group
        self.mos_index[adapter] = self._draw_indices(config, shared)
        self.mos_scale[adapter] = self._draw_scales(config, shared)
        self.scaled[adapter] = config.random_scaling
        self.collectors[adapter] = group.collector
        if group.layers:
            self.mos_A.share(adapter, group.layers[0].mos_A)
            self.mos_B.share(adapter, group.layers[0].mos_B)
        else:
            self._create_pools(adapter, config, group.layout.size)
        group.layers.append(self)

    def _draw_indices(self, config: MosConfig, place: Place) -> Tensor:
        """Sec. 3.2 to 3.5; returns (2, r, l) int32, which every communication library can broadcast."""
        sides = ("A", "B") if config.pair_dissociation else ("A", "A")
        layout = place.group.layout
        draws = [sample_indices(layout, place.block, stream(config.index_seed, place.name, side)) for side in sides]
        return torch.stack(draws).int()

    def _draw_scales(self, config: MosConfig, place: Place) -> Tensor:
        """The frozen scale s_i^k of each vector pair (Sec. 2, Random Scaling), or ones; returns (r,)."""
        ones = torch.ones(place.group.layout.rank, device="cpu")
        if not config.random_scaling:
            return ones
        return ones.normal_(config.scale_mean, config.scale_std, generator=stream(config.index_seed, place.name, "s"))

    def _create_pools(self, adapter: str, config: MosConfig, size: int) -> None:
        """Pools of `size` shards. A uniform, B zero (Sec. 3.5, Initialization); B as `nn.Linear` would be with
        `init_weights=False`."""
        shards, bound = config.shards_per_vector, init_bound(self.in_features)
        self.mos_A[adapter] = nn.Parameter(torch.empty(size, self.in_features // shards))
        self.mos_B[adapter] = nn.Parameter(torch.empty(size, self.out_features // shards))
        nn.init.uniform_(self.mos_A[adapter], -bound, bound)
        bound = 0.0 if config.init_weights else 1 / math.sqrt(self.r[adapter])
        nn.init.uniform_(self.mos_B[adapter], -bound, bound)

    def take_choice(self, adapter: str, other: str, config: MosConfig) -> None:
        """Read the shards that the adapter `other` reads here, with the same scales; both have the settings `config`.

        Its pools are those of the model that it was added to, which may have lost or gained blocks since.
        """
        own, size = self.mos_A[adapter], len(self.mos_A[other])
        if len(own) != size:
            self._create_pools(adapter, config, size)
            for pool in (self.mos_A, self.mos_B):
                pool[adapter] = nn.Parameter(pool[adapter].to(own), requires_grad=own.requires_grad)
        self.mos_index[adapter] = self.mos_index[other].clone()
        self.mos_scale[adapter] = self.mos_scale[other].clone()
        self.scaled[adapter] = self.scaled[other]

    def _get_available_adapters(self) -> set[str]:
        return set(self.scaling)

    def pool_modules(self, adapter: str) -> tuple[Pool, Pool]:
        """The modules that hold the A pool (n, h/l) and the B pool (n, o/l)."""
        own: Any = self._modules  # what self.mos_A looks up, at a fifth of the time
        return own["mos_A"]._modules[adapter], own["mos_B"]._modules[adapter]

    def factors(self, adapter: str) -> tuple[Tensor, Tensor]:
        """A (r, h), its rows times the random scales, and B (o, r)."""
        a, b = self._assembled(adapter)
        if self.scaled[adapter]:
            a = a * self.mos_scale[adapter].to(a.dtype)[:, None]  # (r, h) (r, 1)
        return a, b.T

    def _assembled(self, adapter: str) -> Pair:
        """The rows of A (r, h) and the columns of B (r, o).

        Raises RuntimeError if gradients are wanted that would not reach the pools, or not wholly.
        """
        own: Any = self._modules
        pools, index = self.pool_modules(adapter), own["mos_index"]._buffers[adapter]
        if not (self.training or torch.is_grad_enabled()):
            return _picked(pools, index)
        self.note_ddp()
        offloaded = private.is_offloaded(pools[0]) or private.is_offloaded(pools[1])
        if offloaded and self.training:
            raise RuntimeError(
                f"The pools of adapter '{adapter}' are offloaded and cannot be trained; keep them in memory."
            )
        if not torch.is_grad_enabled():
            return _picked(pools, index)
        weights = pools[0].weight, pools[1].weight
        if offloaded or not (weights[0].requires_grad or weights[1].requires_grad):
            with torch.no_grad():
                return _picked(pools, index)
        if private.is_transformed() or not all(map(is_whole, weights)):
            return _picked(pools, index)
        if pools[0].is_torn() or pools[1].is_torn():
            raise RuntimeError(TORN.format(adapter=adapter))
        return self._collected(adapter, weights, index)

    def _collected(self, adapter: str, weights: Pair, index: Tensor) -> Pair:
        """The same, with the gradients of all blocks scattered together."""
        here = index.to(weights[0].device)
        stand_ins = self.collectors[adapter].take(weights, here)
        a, b = Assemble.apply(*stand_ins, weights[0].detach(), weights[1].detach(), here, self.refusal(*weights))
        return a.to(index.device), b.to(index.device)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """As for every layer; with `safe_merge` also shards that no block selected must be finite."""
        for adapter in self.active_adapters if adapter_names is None else adapter_names:
            if safe_merge and adapter in self.scaling:
                require_finite(adapter, self.mos_A[adapter], self.mos_B[adapter])
        super().merge(safe_merge, adapter_names)


def note_scales(layer: MosLayer, _: Any) -> None:
    """After `load_state_dict`: whether the scales that it has brought are others than ones."""
    for adapter, scale in layer.mos_scale.items():
        if not scale.is_meta:
            layer.scaled[adapter] = bool((scale != 1).any())


def is_whole(weight: Tensor) -> bool:
    """Whether this is the pool as it is trained: not a part of it (ZeRO-3), nor what somebody has put in its place
    for a call (`torch.func.functional_call`, a replica of DataParallel)."""
    return isinstance(weight, nn.Parameter) and not private.is_partitioned(weight)


def _picked(pools: tuple[Pool, Pool], index: Tensor) -> Pair:
    """What `index` (2, r, l) picks from the pools of A and of B."""
    index_a, index_b = index.unbind()
    return pools[0](index_a), pools[1](index_b)


class MosLinear(MosLayer):
    """A linear layer with MoS. PEFT finds adapted linear layers by "Linear" in the name of the class."""

"""A linear layer whose output gains alpha / r * B A x, whatever the method makes A and B of.

A method says which parameters it has (`create`) and how they make up the factors (`factors`). Forward, merging, mixed
batches and quantized base layers are the same for all.
"""

import warnings
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils import quantization_extra_repr, resolve_quantization_backend
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mos.common import private
from mos.common.config import LowRankConfig
from mos.common.keeping import Keeping, Pair
from mos.common.low_rank import add_low_rank

HOOKED = (
    "With reentrant gradient checkpointing a hook on a parameter that blocks share is called before all of them have "
    "added to its gradient. Use gradient_checkpointing_kwargs={'use_reentrant': False}, or take the hook off."
)
EARLY_REDUCTION = (
    "DDP with reentrant gradient checkpointing averages a parameter that blocks share before all of them have added to "
    "its gradient. Use gradient_checkpointing_kwargs={'use_reentrant': False}, or "
    "DistributedDataParallel(..., static_graph=True)."
)


class LowRankLayer(Keeping, nn.Module, BaseTunerLayer):
    """A linear layer (float, Conv1D or quantized) whose output gains `alpha / r * B A dropout(x)`."""

    other_param_names: tuple[str, ...] = ("r", "scaling", "dropout")

    def __init__(self, base_layer: nn.Module, **kwargs: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.quantization_backend = resolve_quantization_backend(self.get_base_layer(), **kwargs)
        self.in_features, self.out_features = self.widths()
        self.r: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        self.dropout = nn.ModuleDict()
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.reduced_early = False
        self.kept = None

    def widths(self) -> tuple[int, int]:
        """The in-features h and the out-features o of what is adapted."""
        return private.in_out_features(self.get_base_layer())

    def create(self, adapter: str, config: Any, shared: Any) -> None:
        """Make and initialise the adapter's parameters on this layer; `shared` comes from `LowRankModel.shared`."""
        raise NotImplementedError

    def factors(self, adapter: str) -> tuple[Tensor, Tensor]:
        """The factors A (r, h) and B (o, r) of this layer's update, without the scaling; gradients flow back."""
        raise NotImplementedError

    def rank(self, config: Any, shared: Any) -> int:
        """The rank r of the update on this layer."""
        return cast(int, config.r)

    def update_layer(self, adapter: str, config: LowRankConfig, shared: Any = None) -> None:
        self.r[adapter] = self.rank(config, shared)
        self.scaling[adapter] = config.alpha / self.r[adapter]
        self.dropout[adapter] = nn.Dropout(config.dropout)
        self.create(adapter, config, shared)
        if self.kept is not None:
            self.kept.forget(adapter)
        self._move_adapter_to_device_of_base_layer(adapter)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """An offloaded base weight is on the meta device until it is used, so move to where it will be then."""
        hook = private.offload_hook(self.get_base_layer())
        if device is None and hook is not None:
            device = hook.execution_device
        super()._move_adapter_to_device_of_base_layer(adapter_name, device)

    def add_update(self, y: Tensor, x: Tensor, adapter: str) -> Tensor:
        """y + alpha / r * B A dropout(x).   y: (..., o), x: (..., h) -> (..., o), at least as precise as y"""
        a, b = self.present_factors(adapter, x)  # (r, h), (o, r)
        if x.dtype != a.dtype:
            x = self._cast_input_dtype(x, a.dtype)
        own: Any = self._modules  # each look-up by attribute costs a decoding step a hundredth of the layer
        dropout = own["dropout"]._modules[adapter]
        if dropout.training:  # else calling it costs a decoding step as much as assembling a factor
            x = dropout(x)
        if y.dtype != a.dtype:
            if y.dtype.itemsize >= a.dtype.itemsize:  # autocast: y must not lose precision
                return y + F.linear(F.linear(x, a), b) * self.scaling[adapter]
            y = y.to(a.dtype)
        return add_low_rank(y, x, a, b, self.scaling[adapter])

    def present_factors(self, adapter: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """A (r, h) and B (o, r) for the tokens x: in the type of autocast, and kept ones within `kept_factors`."""
        dtype = private.autocast_dtype(x)
        if self.kept is None or not self.kept.usable(self.training):
            return in_type(self.factors(adapter), dtype)
        pairs = self.kept.pairs
        if (adapter, dtype) not in pairs:
            pairs[adapter, dtype] = in_type(self.factors(adapter), dtype)
        return pairs[adapter, dtype]

    def note_ddp(self) -> None:
        """Remember whether DDP runs this forward pass and averages gradients early; a recomputation cannot tell."""
        if torch.compiler.is_compiling():
            return
        ddp = private.running_ddp()
        early = ddp is not None and not ddp.static_graph
        if early != self.reduced_early and not private.in_backward_pass():
            self.reduced_early = early

    def refusal(self, *shared: Tensor) -> str | None:
        """Why this forward pass must not be differentiated: it is a recomputation, and somebody takes gradients early.

        Reentrant checkpointing differentiates recomputed passes one by one. DDP, or a hook, takes a gradient after the
        first of them, while other blocks have yet to add to it. (Without reentrance a recomputed pass supplies tensors
        only and is itself not differentiated.) Methods that share parameters between blocks ask for it, after
        `note_ddp`.

        shared: the parameters that blocks share
        """
        if torch.compiler.is_compiling() or not private.in_backward_pass():
            return None
        if self.reduced_early:
            return EARLY_REDUCTION
        return HOOKED if any(map(private.is_hooked, shared)) else None

    def get_delta_weight(self, adapter: str) -> Tensor:
        """alpha / r * B A in the base weight's layout: (o, h), or (h, o) for a Conv1D; at least float32."""
        a, b = self.factors(adapter)
        dtype = torch.promote_types(a.dtype, torch.float32)  # half-precision products are slow on CPUs
        delta = b.to(dtype) @ a.to(dtype) * self.scaling[adapter]  # (o, r) (r, h) -> (o, h)
        return delta.T if isinstance(self.get_base_layer(), Conv1D) else delta

    def forward(self, x: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Tensor:
        """x: (batch, ..., h) -> (batch, ..., o). adapter_names: one per row for a mixed batch, "__base__" for none."""
        if adapter_names is not None:
            self._check_mixed_batch(x, adapter_names)
        if self.disable_adapters and self.merged:
            self.unmerge()
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        dtype = result.dtype
        if self.quantization_backend is not None:
            result = self.quantization_backend.maybe_clone_base_result(result)
        if adapter_names is not None:
            return self._add_by_row(result, x, adapter_names)
        for adapter in self.active_adapters:
            if adapter in self.scaling:
                result = self.add_update(result, x, adapter)
        return result if result.dtype == dtype else result.to(dtype)

    def _check_mixed_batch(self, x: Tensor, adapter_names: list[str]) -> None:
        if len(x) != len(adapter_names):
            raise ValueError(
                f"Length of `adapter_names` should be the same as the number of inputs, but got {len(adapter_names)} "
                f"and {len(x)} respectively."
            )
        if self.merged:
            raise ValueError(
                "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
            )

    def _add_by_row(self, result: Tensor, x: Tensor, adapter_names: list[str]) -> Tensor:
        for adapter in sorted(set(adapter_names) & self.scaling.keys()):
            rows = torch.tensor([i for i, name in enumerate(adapter_names) if name == adapter], device=x.device)
            result = result.index_copy(0, rows, self.add_update(result[rows], x[rows], adapter).to(result.dtype))
        return result

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the updates to the base weight. With `safe_merge`, a sum that is not finite raises ValueError instead."""
        for adapter in check_adapters_to_merge(self, adapter_names):
            if adapter not in self.scaling:
                continue
            weight = self.get_base_weight()
            merged = (weight + self.get_delta_weight(adapter)).to(weight.dtype)
            if safe_merge:
                require_finite(adapter, merged)
            self.set_base_weight(merged)
            self.merged_adapters.append(adapter)

    def unmerge(self) -> None:
        """Take the merged updates out of the base weight again, up to rounding."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        while self.merged_adapters:
            adapter = self.merged_adapters.pop()
            weight = self.get_base_weight()
            self.set_base_weight((weight - self.get_delta_weight(adapter)).to(weight.dtype))

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: not the factors that `kept_factors` keeps."""
        return self.__dict__ | {"kept": None}

    def __repr__(self) -> str:
        return f"{type(self).__module__.split('.')[-2]}.{super().__repr__()}"

    def extra_repr(self) -> str:
        return quantization_extra_repr(self)


def in_type(factors: Pair, dtype: torch.dtype | None) -> Pair:
    """A and B in `dtype`, or as they are for None."""
    return factors if dtype is None else (factors[0].to(dtype), factors[1].to(dtype))


def require_finite(adapter: str, *tensors: Tensor) -> None:
    """Raises ValueError, in PEFT's words, unless every number of the tensors is finite."""
    if not all(torch.isfinite(tensor).all() for tensor in tensors):
        raise ValueError(f"NaNs detected in the merged weights. The adapter {adapter} seems to be broken")

"""MoS on weights that are no layers of their own: the experts of a mixture, held as one parameter of E matrices.

Each expert of each layer is a block, so one pool per parameter type serves layers times experts (L is their product in
the equations). As PEFT's LoRA does it, the update is added to the parameter while the module runs.
"""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mos.config import MosConfig
from mos.layer import MosLayer, Place

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Stack(NamedTuple):
    """A targeted parameter: E matrices from h features to o."""

    experts: int
    in_features: int
    out_features: int


def stack(module: nn.Module, parameter_name: str) -> Stack:
    """The sizes of a parameter (E, o, h), (E, h, o) if the module says `is_transposed`, or (o, h), which is one matrix.

    Raises ValueError for a parameter of another number of dimensions.
    """
    shape = getattr(module, parameter_name).shape
    if len(shape) not in (2, 3):
        raise ValueError(
            f"'{parameter_name}' has the shape {tuple(shape)}, but target_parameters takes 2D and 3D parameters. Leave "
            "it out of them."
        )
    experts, out_features, in_features = (1, *shape)[-3:]
    if len(shape) == 3 and is_transposed(module):
        in_features, out_features = out_features, in_features
    return Stack(experts, in_features, out_features)


def is_transposed(module: nn.Module) -> bool:
    """Whether the matrices of a 3D parameter map rows to columns: (E, h, o)."""
    return bool(getattr(module, "is_transposed", False))


class ParamWrapper(MosLayer):
    """A module one of whose parameters gains alpha / r * B^k A^k, for each of its E experts, while the module runs.

    Several parameters of one module have a wrapper each, nested. The name of the class is by what PEFT finds them.
    A (E * r, h), B (o, E * r) and the index matrices (2, E * r, l) hold the experts one after the other.
    """

    def __init__(self, base_layer: nn.Module, parameter_name: str) -> None:
        self.parameter_name = parameter_name
        super().__init__(base_layer)
        depth = 0
        while isinstance(base_layer, ParamWrapper):
            base_layer, depth = base_layer.base_layer, depth + 1
        self.path = "base_layer." * depth + parameter_name  # of the parameter in what this wraps

    def widths(self) -> tuple[int, int]:
        self.experts, in_features, out_features = stack(self.get_base_layer(), self.parameter_name)
        return in_features, out_features

    def _draw_indices(self, config: MosConfig, place: Place) -> Tensor:
        return torch.cat([super(ParamWrapper, self)._draw_indices(config, own) for own in self._blocks(place)], 1)

    def _draw_scales(self, config: MosConfig, place: Place) -> Tensor:
        return torch.cat([super(ParamWrapper, self)._draw_scales(config, own) for own in self._blocks(place)])

    def _blocks(self, place: Place) -> list[Place]:
        """Where each expert stands; `place` is that of the first."""
        return [Place(f"{place.name}.{expert}", place.block + expert, place.group) for expert in range(self.experts)]

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        super()._move_adapter_to_device_of_base_layer(adapter_name, device or self.get_base_weight().device)

    def get_base_weight(self) -> Tensor:
        """The parameter without the update: (E, o, h), (E, h, o) or (o, h)."""
        return cast(Tensor, getattr(self.get_base_layer(), self.parameter_name))

    def set_base_weight(self, weight: Tensor) -> None:
        self.get_base_weight().data = weight

    def get_delta_weight(self, adapter: str) -> Tensor:
        """alpha / r * B A of every expert, in the layout of the parameter; at least float32."""
        a, b = self.factors(adapter)
        dtype = torch.promote_types(a.dtype, torch.float32)
        weight = self.get_base_weight()
        return self._add(torch.zeros_like(weight, dtype=dtype), a, b, self.scaling[adapter])

    def _add(self, weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        """weight + scaling * B A of every expert, in the type of the weight."""
        a, b = (each.to(weight.dtype) for each in (a, b.T))
        a, b = (each.view(self.experts, -1, each.shape[1]) for each in (a, b))  # (E*r, h), (E*r, o) -> (E, r, .)
        left, right = (a, b) if weight.dim() == 3 and is_transposed(self.get_base_layer()) else (b, a)
        matrices = weight.view(-1, *weight.shape[-2:])  # (o, h) -> (1, o, h)
        return torch.baddbmm(matrices, left.mT, right, alpha=scaling).view(weight.shape)  # (E, o, r) (E, r, h)

    def forward(self, x: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Any:
        """What the module returns for x with the updated parameter.

        Raises ValueError for a mixed batch: the experts of all rows run together.
        """
        if adapter_names is not None:
            raise ValueError("An adapter with target_parameters cannot serve a mixed batch: pass no adapter_names.")
        if self.disable_adapters and self.merged:
            self.unmerge()
        active = [adapter for adapter in self.active_adapters if adapter in self.scaling]
        if self.disable_adapters or self.merged or not active:
            return self.base_layer(x, *args, **kwargs)
        weight = self.get_base_weight()
        with torch.autocast(x.device.type, enabled=False):  # the module expects the type that its parameter has
            for adapter in active:
                weight = self._add(weight, *self.present_factors(adapter, x), self.scaling[adapter])
        return torch.func.functional_call(self.base_layer, {self.path: weight}, (x, *args), kwargs, tie_weights=False)

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The module without this wrapper and those inside it, which PEFT does not look into."""
        layer: nn.Module = self
        while isinstance(layer, ParamWrapper):
            if merge:
                layer.merge(safe_merge, adapter_names)
            layer = layer.base_layer
        return layer

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """PEFT's conversion decomposes one matrix per layer; `export_lora` knows the experts."""
        return False

    def extra_repr(self) -> str:
        return f"parameter_name={self.parameter_name!r}"

"""What the methods share: the update of a linear layer is the product of two low-rank factors, scaled by alpha / r.

A method says which parameters it has (`LowRankLayer.create`) and how they make up the factors (`factors`); forward,
merging, mixed batches and quantized base layers are the same for all.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft.config import PeftConfig
from peft.tuners.tuners_utils import (
    BaseTuner,
    BaseTunerLayer,
    _get_in_out_features,
    _maybe_include_all_linear_layers,
    check_adapters_to_merge,
)
from peft.utils import PeftType, quantization_extra_repr, resolve_quantization_backend
from peft.utils.other import AuxiliaryTrainingWrapper
from peft.utils.quantization_utils import get_quantization_kwargs
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers.pytorch_utils import Conv1D

from mos.card import explain_loading

ATTENTION_INPUTS = ["q_proj", "k_proj", "v_proj"]
LINEAR_LAYERS = [*ATTENTION_INPUTS, "o_proj", "gate_proj", "up_proj", "down_proj"]
EARLY_REDUCTION = (
    "DDP with reentrant gradient checkpointing averages a parameter that blocks share before all of them have added to "
    "its gradient. Use gradient_checkpointing_kwargs={'use_reentrant': False}, or "
    "DistributedDataParallel(..., static_graph=True)."
)
LLAMA_LIKE = ("gemma", "gemma2", "llama", "mistral", "qwen2", "qwen3")


@dataclass
class LowRankConfig(PeftConfig):
    """The settings that every method has.

    Raises ValueError for a dropout out of range, and for settings that contradict each other.
    """

    r: int | None = field(default=8, metadata={"help": "Rank of the update"})
    alpha: float = field(default=16.0, metadata={"help": "The update is scaled by alpha / r"})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the adapter's input while training"})
    target_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Names or name endings of the linear layers, or a regular expression"}
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Layers to leave out, in the same form"}
    )
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Only these blocks"})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of the list of blocks"})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules trained and saved in full"})
    bias: str = field(default="none", metadata={"help": "Biases to train: none, all or <method>_only"})
    init_weights: bool = field(default=True, metadata={"help": "True: the update starts at zero; False: at random"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout={self.dropout} must be in [0, 1).")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError(f"layers_pattern={self.layers_pattern!r} needs layers_to_transform as well.")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError(
                f"layers_to_transform={self.layers_to_transform} cannot be combined with the expression "
                f"target_modules={self.target_modules!r}: give target_modules as a list."
            )

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write the settings, and how to load the adapter into its model card.

        PEFT calls this in every adapter's folder after it has written the card, on which a method has no say.
        """
        super().save_pretrained(save_directory, **kwargs)
        explain_loading(Path(save_directory), PeftType(self.peft_type).value)

    def require_positive(self, *names: str) -> None:
        """Raises ValueError unless these settings are integers of at least 1."""
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value} must be an integer of at least 1.")


class LowRankLayer(nn.Module, BaseTunerLayer):
    """A linear layer (float, Conv1D or quantized) whose output gains `alpha / r * B A dropout(x)`."""

    other_param_names: tuple[str, ...] = ("r", "scaling", "dropout")

    def __init__(self, base_layer: nn.Module, **kwargs: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.quantization_backend = resolve_quantization_backend(self.get_base_layer(), **kwargs)
        self.in_features, self.out_features = in_out_features(self.get_base_layer())
        self.r: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        self.dropout = nn.ModuleDict()
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.reduced_early = False

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
        self._move_adapter_to_device_of_base_layer(adapter)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """An offloaded base weight is on the meta device until it is used: the adapter stays where it will be."""
        hook = getattr(self.get_base_layer(), "_hf_hook", None)
        if device is None and getattr(hook, "offload", False):
            device = cast(Any, hook).execution_device
        super()._move_adapter_to_device_of_base_layer(adapter_name, device)

    def update(self, x: Tensor, adapter: str) -> Tensor:
        """What the adapter adds to the output.   x: (..., h) -> (..., o)"""
        a, b = self.factors(adapter)
        x = self.dropout[adapter](self._cast_input_dtype(x, a.dtype))
        return F.linear(F.linear(x, a), b) * self.scaling[adapter]  # (..., h) -> (..., r) -> (..., o)

    def refusal(self) -> str | None:
        """Why this forward pass must not be differentiated, if it is a recomputation of one within DDP.

        Reentrant checkpointing differentiates recomputed passes one by one, and DDP averages a parameter's gradient
        after the first of them, while other blocks have yet to add to it. (Without reentrance, the recomputed pass only
        supplies tensors and is itself not differentiated.) Methods that share parameters between blocks ask for it.
        """
        if torch.compiler.is_compiling():
            return None
        if torch._C._current_graph_task_id() == -1:  # not called from a backward pass
            ddp = DistributedDataParallel._get_active_ddp_module()
            self.reduced_early = ddp is not None and not ddp.static_graph
            return None
        return EARLY_REDUCTION if self.reduced_early else None

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
                result = result + self.update(x, adapter)
        return result.to(dtype)

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
            result = result.index_add(0, rows, self.update(x[rows], adapter).to(result.dtype))
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

    def __repr__(self) -> str:
        return f"{type(self).__module__.split('.')[-2]}.{super().__repr__()}"

    def extra_repr(self) -> str:
        return quantization_extra_repr(self)


class LowRankModel(BaseTuner):
    """Replaces the targeted linear layers by `tuner_layer_cls`."""

    tuner_layer_cls: type[LowRankLayer]

    def check_targets(self, config: Any, targets: dict[str, nn.Module]) -> None:
        """Refuse (ValueError), before any layer is replaced, what the method cannot do to these base layers."""

    def shared(self, adapter_name: str, key: str, layer: Any) -> Any:
        """What the layer at `key` needs to know of the other layers."""

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        config = self._prepare_adapter_config(self.peft_config[adapter_name], self.get_model_config(model))
        config = _maybe_include_all_linear_layers(config, model)
        targets = self._targets(model, config, kwargs.get("state_dict"))
        check_in_reach(model, targets)
        self.check_targets(config, targets)
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _targets(self, model: nn.Module, config: Any, state_dict: dict[str, Tensor] | None) -> dict[str, nn.Module]:
        """The base layers that will be adapted: those in `state_dict` if there is one, as PEFT has it."""
        saved = {key.rsplit(f".{self.prefix}", 1)[0].removeprefix("_orig_mod.") for key in state_dict or ()}
        targets = {}
        inside = None  # of a layer that an earlier adapter wrapped
        for key, module in model.named_modules():
            if not key or (inside and key.startswith(inside)):
                continue
            inside = f"{key}." if isinstance(module, BaseTunerLayer) else None
            if key in saved if state_dict else self._check_target_module_exists(config, key):
                targets[key] = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
                check_linear(key, targets[key])
        return targets

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = target
        if not isinstance(layer, self.tuner_layer_cls):
            layer = self.tuner_layer_cls(target, **get_quantization_kwargs(self.model))
            # before there are parameters, which it would take to the meta device of an offloaded base
            self._replace_module(parent, target_name, layer, target)
        layer.update_layer(adapter_name, peft_config, self.shared(adapter_name, current_key, layer))
        layer.set_adapter(self.active_adapters)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Hand `adapter_names`, one per row of the batch, to the layers while the model runs."""
        names = kwargs.pop("adapter_names", None)
        if names is None:
            yield
            return
        self._check_adapter_names(names)
        beams = kwargs.get("num_beams") or 1
        repeated = [name for name in names for _ in range(beams)]  # generation repeats each row, after the encoder
        is_encoder_decoder = self.get_model_config(self.model).get("is_encoder_decoder")
        encoder = set(self.model.get_encoder().modules()) if is_encoder_decoder else set()

        def pass_names(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, kwargs | {"adapter_names": names if module in encoder else repeated}

        layers = [m for m in self.modules() if isinstance(m, self.tuner_layer_cls | AuxiliaryTrainingWrapper)]
        handles = [layer.register_forward_pre_hook(pass_names, with_kwargs=True) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _check_adapter_names(self, names: list[str]) -> None:
        if self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        unknown = set(names) - self.peft_config.keys() - {"__base__"}
        if unknown:
            raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(sorted(unknown))}")


def in_out_features(layer: nn.Module) -> tuple[int, int]:
    """The widths h and o of a linear layer of any kind."""
    return cast(tuple[int, int], _get_in_out_features(layer))


def require_finite(adapter: str, *tensors: Tensor) -> None:
    """Raises ValueError, in PEFT's words, unless every number of the tensors is finite."""
    if not all(torch.isfinite(tensor).all() for tensor in tensors):
        raise ValueError(f"NaNs detected in the merged weights. The adapter {adapter} seems to be broken")


def check_in_reach(model: nn.Module, targets: dict[str, nn.Module]) -> None:
    """Raises ValueError if PEFT has cut base layers on disk off from their weights, to load an adapter along with them.

    It writes the adapter to the disk too, but under names that fit LoRA alone.
    """
    if "disk" not in getattr(model, "hf_device_map", {}).values():
        return
    for name, layer in targets.items():
        if next(layer.parameters()).is_meta and not hasattr(layer, "_hf_hook"):
            raise ValueError(
                f"'{name}' is offloaded to disk, where PEFT loads only LoRA. Load the base model with a device_map "
                "without 'disk'; or add the adapter with get_peft_model and fill it with set_peft_model_state_dict."
            )


def check_linear(name: str, layer: nn.Module) -> None:
    """Raises ValueError unless `layer` is a linear layer, float or quantized."""
    backend = resolve_quantization_backend(layer)
    if not isinstance(layer, nn.Linear | Conv1D) and getattr(backend, "layer_type", None) != "linear":
        raise ValueError(
            f"'{name}' is a {type(layer).__name__}; only linear layers (torch.nn.Linear, Conv1D or quantized) can be "
            "adapted. Name only such layers in target_modules."
        )

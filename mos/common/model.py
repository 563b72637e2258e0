"""Putting layers of a method into a model: which layers, checked before the first of them is replaced."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import resolve_quantization_backend
from peft.utils.other import AuxiliaryTrainingWrapper
from peft.utils.quantization_utils import get_quantization_kwargs
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mos.common import private
from mos.common.layer import LowRankLayer
from mos.common.parameters import Weight
from mos.files import last_name

ATTENTION_INPUTS = ["q_proj", "k_proj", "v_proj"]
LINEAR_LAYERS = [*ATTENTION_INPUTS, "o_proj", "gate_proj", "up_proj", "down_proj"]
LLAMA_LIKE = ("gemma", "gemma2", "llama", "mistral", "qwen2", "qwen3")


class LowRankModel(BaseTuner):
    """Replaces the targeted linear layers by `tuner_layer_cls`."""

    tuner_layer_cls: type[LowRankLayer]

    def check_targets(self, config: Any, targets: dict[str, nn.Module]) -> None:
        """Refuse (ValueError), before any layer is replaced, what the method cannot do to these base layers."""

    def shared(self, adapter_name: str, key: str, layer: Any) -> Any:
        """What the layer at `key` needs to know of the other layers."""

    def new_layer(self, target: nn.Module, parameter_name: str | None) -> LowRankLayer:
        """The layer that takes the place of `target`, or of the parameter in it called `parameter_name`."""
        return self.tuner_layer_cls(target, **get_quantization_kwargs(self.model))

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        config: Any = self._prepare_adapter_config(self.peft_config[adapter_name], self.get_model_config(model))
        config.base_model_type = self.get_model_config(model).get("model_type")
        config = private.include_all_linear(config, model)
        targets = self._targets(model, config, kwargs.get("state_dict"))
        check_in_reach(model, targets)
        self.check_targets(config, targets)
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _targets(self, model: nn.Module, config: Any, state_dict: dict[str, Tensor] | None) -> dict[str, nn.Module]:
        """The base layers that will be adapted. If there is a `state_dict`, PEFT takes those that have keys in it."""
        saved = {key.rsplit(f".{self.prefix}", 1)[0].removeprefix("_orig_mod.") for key in state_dict or ()}
        targets = {}
        inside = None  # of a layer that an earlier adapter wrapped
        for key, module in model.named_modules():
            if not key or (inside and key.startswith(inside)):
                continue
            inside = f"{key}." if isinstance(module, BaseTunerLayer) else None
            if key in saved if state_dict else self._check_target_module_exists(config, key):
                targets[key] = base_layer(module)
                check_linear(key, targets[key], **get_quantization_kwargs(model))
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
            layer = self.new_layer(target, parameter_name)
            # before there are parameters, which it would take to the meta device of an offloaded base
            self._replace_module(parent, target_name, layer, target)
        layer.update_layer(adapter_name, peft_config, self.shared(adapter_name, current_key, layer))
        layer.set_adapter(self.active_adapters)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """<layer>.mos_A.<adapter>.weight in the model is <layer>.mos_A in a file."""
        name = key.removesuffix(f".{adapter_name}.weight")
        if name != key and last_name(name).startswith(cls.prefix):
            return name
        return cast(str, super()._remove_adapter_name_from_key(key, adapter_name))

    @classmethod
    def _get_adapter_state_dict(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: Any, unwanted_adapter_names: list[str]
    ) -> dict[str, Tensor]:
        """What is saved: a parameter that layers share once, under the name of the first of them."""
        state = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        repeated = {key for each in shared(model, adapter_name) for key in each.keys[1:]}
        return {key: value for key, value in state.items() if key not in repeated}

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """What is loaded, under the names in the model: for a shared parameter, under all of its names.

        All names get the same tensor, so it does not matter whether loading copies it or puts it in the parameter's
        place. It takes no memory; a copy writes the parameter once for each layer.
        """
        state = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        groups = shared(model, adapter_name)
        for each in groups:
            each.check(state)
        cls.accept(model, adapter_name, state)
        for each in groups:
            if found := next((key for key in each.keys if key in state), None):
                state = dict.fromkeys(each.keys, state[found]) | state
        return state

    @classmethod
    def accept(cls, model: nn.Module, adapter: str, state: dict[str, Tensor]) -> None:
        """Make room for what a file holds, under the names in the model. Raises ValueError, before anything is changed,
        for what the method cannot take."""

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


def base_layer(module: nn.Module) -> nn.Module:
    """The module itself, or what an earlier adapter wrapped."""
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def check_in_reach(model: nn.Module, targets: dict[str, nn.Module]) -> None:
    """Raises ValueError if PEFT loads an adapter while base layers are on disk.

    PEFT detaches such layers first and saves them again under LoRA's names only, so no other method can be loaded.
    """
    if "disk" not in getattr(model, "hf_device_map", {}).values():
        return
    for name, layer in targets.items():
        if private.is_detached_by_peft(layer):
            raise ValueError(
                f"'{name}' is offloaded to disk, where PEFT loads only LoRA. Load the base model with a device_map "
                "without 'disk'; or add the adapter with get_peft_model and fill it with set_peft_model_state_dict."
            )


def check_linear(name: str, layer: nn.Module, **quantization: Any) -> None:
    """Raises ValueError unless `layer` is a linear layer, float or quantized.

    quantization: what PEFT's backends need to know of the model (torchao)
    """
    backend = resolve_quantization_backend(layer, **quantization)
    if not isinstance(layer, nn.Linear | Conv1D) and getattr(backend, "layer_type", None) != "linear":
        raise ValueError(
            f"'{name}' is a {type(layer).__name__}; only linear layers (torch.nn.Linear, Conv1D or quantized) can be "
            "adapted. Name only such layers in target_modules."
        )


class Shared(NamedTuple):
    """A parameter of an adapter: a module that holds it, and its keys in a state dict, one for each such module."""

    holder: Weight
    keys: list[str]

    def check(self, state: dict[str, Tensor]) -> None:
        """Raises ValueError for a state that has several values of the parameter, as after copying a block alone."""
        found = [key for key in self.keys if key in state]
        for key in found[1:]:
            one, other = state[found[0]], state[key]
            if one is not other and not one.is_meta and not other.is_meta and not torch.equal(one, other):
                raise ValueError(
                    f"'{found[0]}' and '{key}' are one parameter here, but differ in the file, as when a block was "
                    "copied on its own. Merge such an adapter (merge_and_unload) before the model is saved."
                )


def shared(model: nn.Module, adapter: str) -> list[Shared]:
    """The parameters of the adapter, the keys of unloaded layers last.

    A block that has been moved to the meta device holds a parameter without its values.
    """
    found: dict[int, list[tuple[str, Weight]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Weight) and last_name(name) == adapter:
            found.setdefault(id(module.tied), []).append((f"{name}.weight", module))
    groups = [sorted(held, key=lambda pair: pair[1].weight.is_meta) for held in found.values()]
    return [Shared(held[0][1], [key for key, _ in held]) for held in groups]

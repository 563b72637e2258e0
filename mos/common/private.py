"""The private parts of other libraries that this package uses, each behind one function.

docs/upgrading.md lists them, with the test that notices a change.
"""

from typing import Any, cast

import torch
from peft.config import PeftConfig
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import _get_in_out_features, _maybe_include_all_linear_layers
from peft.utils import PeftType
from peft.utils.transformers_weight_conversion import _MODEL_TO_CONVERSION_PATTERN
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.checkpoint import _CachedTorchDispatchMode, _CachingTorchDispatchMode
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

__all__ = ["BufferDict"]  # the other names are defined here


def enter_peft_type(value: str) -> None:
    """Add the member `value` to PEFT's enumeration of methods, as the enumeration itself would enter it."""
    member = str.__new__(PeftType, value)
    member._name_ = member._value_ = value
    PeftType._member_names_.append(value)
    PeftType._member_map_[value] = member
    PeftType._value2member_map_[value] = member
    type.__setattr__(PeftType, value, member)


def in_out_features(layer: nn.Module) -> tuple[int, int]:
    """The widths h and o of a linear layer, float or quantized."""
    return cast(tuple[int, int], _get_in_out_features(layer))


def include_all_linear(config: Any, model: nn.Module) -> PeftConfig:
    """Replace `target_modules="all-linear"` in `config` by the names of the linear layers of `model`."""
    return cast(PeftConfig, _maybe_include_all_linear_layers(config, model))


def is_mixture(model_type: str | None) -> bool:
    """Whether PEFT rewrites the targets of a LoRA on models of this type, as it does for mixtures of experts."""
    return model_type in _MODEL_TO_CONVERSION_PATTERN


def in_backward_pass() -> bool:
    """Whether this code runs inside a backward pass, as a recomputation of activation checkpointing does."""
    return torch._C._current_graph_task_id() != -1


def running_ddp() -> DistributedDataParallel | None:
    """The DistributedDataParallel model whose forward pass is running, if there is one."""
    return DistributedDataParallel._get_active_ddp_module()


def offload_hook(module: nn.Module) -> Any | None:
    """The hook by which accelerate offloads the weights of `module`, or None; `execution_device` is where they run."""
    hook = vars(module).get("_hf_hook")  # getattr would search the parameters too, in every forward pass
    return hook if getattr(hook, "offload", False) else None


def is_detached_by_peft(layer: nn.Module) -> bool:
    """Whether PEFT has taken accelerate's hook off a layer on disk, which it does while it loads an adapter."""
    return next(layer.parameters()).is_meta and not hasattr(layer, "_hf_hook")


def is_offloaded(module: nn.Module) -> bool:
    """Whether accelerate keeps the weights of `module` elsewhere, and puts them in only while its forward runs."""
    return offload_hook(module) is not None


def is_partitioned(parameter: Tensor) -> bool:
    """Whether DeepSpeed ZeRO-3 keeps parts of the parameter elsewhere, and gathers them only while its module runs."""
    return hasattr(parameter, "ds_id")


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The type in which autocast computes on the device of x, or None if it is off."""
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return None
    return torch.get_autocast_dtype(x.device.type)


def is_transformed() -> bool:
    """Whether torch.compile, a transform of torch.func, forward-mode differentiation, torch.jit.trace or selective
    activation checkpointing is at work.

    They take plain operations apart, but not an `autograd.Function`; and what a recomputation does must be what the
    forward pass did.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or torch.jit.is_tracing()
        or (torch._C._len_torch_dispatch_stack() > 0 and _is_selectively_checkpointed())
    )


def _is_selectively_checkpointed() -> bool:
    return any(
        isinstance(mode, _CachedTorchDispatchMode | _CachingTorchDispatchMode)
        for mode in _get_current_dispatch_mode_stack()
    )


def is_hooked(parameter: Tensor) -> bool:
    """Whether somebody is called with each gradient of the parameter, as an optimizer in the backward pass is."""
    return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)


def rename_in_transformers(pattern: str, replacement: str) -> None:
    """Let transformers rename the keys of files that match `pattern`, in every model's `load_adapter`.

    transformers has public functions to set the renamings of a kind of model, and applies those of the kind "legacy",
    for files of older formats, to all models; that name is private.
    """
    known = get_checkpoint_conversion_mapping("legacy")
    if all(pattern not in renaming.source_patterns for renaming in known):
        renamings = [*known, WeightRenaming(pattern, replacement)]
        register_checkpoint_conversion_mapping("legacy", renamings, overwrite=True)

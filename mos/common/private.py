"""The private parts of other libraries that this package uses, each behind one function.

docs/upgrading.md lists them, with the test that notices a change.
"""

from typing import Any, cast

import torch
from peft.config import PeftConfig
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import _get_in_out_features, _maybe_include_all_linear_layers
from peft.utils import PeftType
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

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


def in_backward_pass() -> bool:
    """Whether this code runs inside a backward pass, as a recomputation of activation checkpointing does."""
    return torch._C._current_graph_task_id() != -1


def running_ddp() -> DistributedDataParallel | None:
    """The DistributedDataParallel model whose forward pass is running, if there is one."""
    return DistributedDataParallel._get_active_ddp_module()


def offload_hook(module: nn.Module) -> Any | None:
    """The hook by which accelerate offloads the weights of `module`, or None.

    `weights_map` of the hook maps the names of the weights to their values, and `execution_device` is where they run.
    """
    hook = getattr(module, "_hf_hook", None)
    return hook if getattr(hook, "offload", False) else None


def is_detached_by_peft(layer: nn.Module) -> bool:
    """Whether PEFT has taken accelerate's hook off a layer on disk, which it does while it loads an adapter."""
    return next(layer.parameters()).is_meta and not hasattr(layer, "_hf_hook")


def offloaded_value(module: nn.Module, name: str) -> Tensor:
    """The value of a weight that accelerate has offloaded from `module`."""
    return cast(Tensor, cast(Any, offload_hook(module)).weights_map[name])

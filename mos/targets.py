"""Which layers and parameters of a model MoS adapts, and which of them share pools."""

import warnings
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from peft import LoraConfig
from peft.utils import INCLUDE_LINEAR_LAYERS_SHORTHAND
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn

from mos.common import private
from mos.common.model import base_layer
from mos.config import MosConfig
from mos.experts import FLOATS, Stack, stack
from mos.layer import Group, Place
from mos.names import block_numbers, layer_type
from mos.shards import PoolLayout


class Kind(NamedTuple):
    """The layers and parameters of one type and width, which share pools: their names in the order of their blocks."""

    type: str
    names: list[str]
    stack: Stack

    def layout(self, config: MosConfig) -> PoolLayout:
        blocks = len(self.names) * self.stack.experts
        e, shards, p = config.equivalent_rank, config.shards_per_vector, config.private_rank
        return PoolLayout(blocks, e, shards, p, config.r)

    def check(self, config: MosConfig) -> None:
        """Raises ValueError if pools for it cannot be built with these settings."""
        self.layout(config).check(self.type, self.stack.in_features, self.stack.out_features)


def kinds(layers: dict[str, nn.Module], parameters: dict[str, Stack]) -> list[Kind]:
    """Group the targeted base layers and parameters by type and sizes."""
    stacks = {name: Stack(1, *private.in_out_features(layer)) for name, layer in layers.items()} | parameters
    names = defaultdict(list)
    for name, own in stacks.items():
        names[layer_type(name), own].append(name)
    return [Kind(kind, sorted(group, key=block_numbers), own) for (kind, own), group in names.items()]


def plan(config: MosConfig, layers: dict[str, nn.Module], parameters: dict[str, Stack]) -> dict[str, Place]:
    """Say of each target which pools it uses, and which block of them it is.

    Raises ValueError, before anything is changed, if the pools of one cannot be built with these settings.
    """
    places = {}
    for kind in kinds(layers, parameters):
        kind.check(config)
        group = Group(kind.layout(config), len(kind.names))
        for number, name in enumerate(kind.names):
            places[name] = Place(name, number * kind.stack.experts, group)
    return places


def parameters(config: MosConfig, model: nn.Module) -> dict[str, Stack]:
    """The parameters that `target_parameters` matches, with their sizes; PEFT matches by the end of the name.

    Raises ValueError for one that the update cannot be added to.
    """
    return {
        name: checked(name, module, parameter)
        for name, module, parameter in named_parameters(model)
        if any(f".{name}".endswith(f".{target}") for target in config.target_parameters or ())
    }


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """The name of each parameter in the base model, the module that has it, and its name there."""
    for path, module in model.named_modules():
        plain = path.replace(".base_layer", "")  # a wrapped module has the name of its wrapper
        for parameter, _ in module.named_parameters(recurse=False):
            yield f"{plain}.{parameter}", module, parameter


def checked(name: str, module: nn.Module, parameter: str) -> Stack:
    """The sizes of a targeted parameter. Raises ValueError for what cannot be adapted."""
    weight = getattr(module, parameter)
    if weight.dtype not in FLOATS:
        raise ValueError(
            f"'{name}' holds {weight.dtype}, but target_parameters takes float32, bfloat16 and float16. Load the base "
            "model in one of these, or leave the parameter out."
        )
    if private.is_offloaded(module):
        raise ValueError(
            f"'{name}' is offloaded, and target_parameters needs it in memory. Keep its module on a device, or leave "
            "the parameter out."
        )
    return stack(module, parameter)


def resolve_all_linear(config: MosConfig, model: nn.Module) -> None:
    """Replace `target_modules="all-linear"`, if the config says so, by the names of what fits the settings.

    They are the linear layers but the head, and the parameters that PEFT's LoRA adapts instead of the linear layers
    that earlier versions of transformers had (experts, routers). Those whose widths or number of blocks do not fit are
    left out, in one warning that names them.

    Raises ValueError if dropout stands against the parameters.
    """
    if config.target_modules != INCLUDE_LINEAR_LAYERS_SHORTHAND:
        return
    private.include_all_linear(config, model)
    config.target_parameters = sorted({*(config.target_parameters or ()), *lora_parameters(model)}) or None
    config.check_parameters()
    layers = {name: base_layer(model.get_submodule(name)) for name in config.target_modules or ()}
    left_out = {}
    for kind in kinds(layers, parameters(config, model)):
        try:
            kind.check(config)
        except ValueError as error:
            left_out[kind.type] = str(error)
            leave_out(config, kind)
    if left_out:
        warnings.warn(f"'all-linear' leaves out {sorted(left_out)}: {' '.join(left_out.values())}", stacklevel=2)


def leave_out(config: MosConfig, kind: Kind) -> None:
    """Take the layers and parameters of a kind out of the targets."""
    config.target_modules = {name for name in config.target_modules or () if name not in kind.names}
    config.target_parameters = [
        target for target in config.target_parameters or () if not kind.names[0].endswith(f".{target}")
    ]


def lora_parameters(model: nn.Module) -> list[str]:
    """What PEFT's LoRA puts into `target_parameters` for "all-linear" on this model."""
    config = LoraConfig(target_modules=INCLUDE_LINEAR_LAYERS_SHORTHAND)
    convert_peft_config_for_transformers(config, model, None)
    return sorted(config.target_parameters or ())

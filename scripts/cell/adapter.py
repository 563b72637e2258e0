"""The adapter of a method on a base model."""

import re
from typing import TYPE_CHECKING, Any

from peft import PeftConfig
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

if TYPE_CHECKING:  # `make gpu-check` counts layers where Hydra is not installed
    from omegaconf import DictConfig


def linear_layers(network: PreTrainedModel) -> dict[str, nn.Module]:
    """The linear layers of the decoder by name: all but the output head.

    PEFT adapts these for target_modules="all-linear", and bitsandbytes quantizes them.
    """
    head = network.get_output_embeddings()
    return {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and layer is not head
    }


def adapter_config(method: "DictConfig", network: PreTrainedModel) -> PeftConfig:
    """The PEFT config of `method`, with `all-linear` written out as the names of `linear_layers`.

    All methods then adapt the same layers. Left to itself, MoS would warn and skip those that its settings do not fit.
    Layers may be named by a regular expression too, and those of `null` are PEFT's own for the architecture.
    Raises ValueError if it names a layer that the network does not have: PEFT would adapt the others and say nothing.
    """
    from hydra.utils import instantiate

    config: Any = instantiate(method.config, _convert_="all")
    names = list(linear_layers(network))
    if config.target_modules == "all-linear":
        config.target_modules = set(names)
    elif missing := absent(method.config.get("target_modules"), names):
        known = sorted({name.rpartition(".")[2] for name in names})
        raise ValueError(
            f"Method {method.name} adapts {', '.join(missing)}, but a {network.config.model_type} model has only "
            f"{', '.join(known)}. {remedy(method)}"
        )
    return config


def absent(targets: Any, names: list[str]) -> list[str]:
    """Those of `target_modules` that match none of the names, as PEFT matches them; none for `null`."""
    if targets is None:
        return []
    if isinstance(targets, str):
        return [] if any(re.fullmatch(targets, name) for name in names) else [targets]
    return [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in names)]


def remedy(method: "DictConfig") -> str:
    """Where the names come from: the model's yaml, for a method that asks it, or the method's."""
    from omegaconf import OmegaConf

    written: Any = OmegaConf.to_container(method.config, resolve=False)
    if "model.attention_inputs" in str(written.get("target_modules")):
        return "Set model.attention_inputs to its query, key and value projections, in this order."
    return "Name some of them in method.config.target_modules."

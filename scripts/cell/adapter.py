"""The adapter of a method on a base model."""

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
    Raises ValueError if it names a layer that the network does not have: PEFT would adapt the others and say nothing.
    """
    from hydra.utils import instantiate

    config: Any = instantiate(method.config, _convert_="all")
    names = list(linear_layers(network))
    if config.target_modules == "all-linear":
        config.target_modules = set(names)
        return config
    missing = [t for t in method.config.target_modules if not any(f".{name}".endswith(f".{t}") for name in names)]
    if missing:
        known = sorted({name.rpartition(".")[2] for name in names})
        raise ValueError(
            f"Method {method.name} adapts {', '.join(missing)}, but a {network.config.model_type} model has only "
            f"{', '.join(known)}. Set model.attention_inputs to its query, key and value projections, in this order."
        )
    return config

"""The shapes of a base model, known from its config alone: nothing is downloaded, and weights take no memory."""

import difflib
import functools
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from omegaconf import DictConfig, OmegaConf
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

OF_A_DECODER = {"attn_config", "ffn_config"}  # parts of a config that describe a decoder's own layers


def meta_model(model: DictConfig) -> PreTrainedModel:
    """The network of `model` on the meta device: shapes without numbers. Raises ValueError as `model_config`."""
    config = model_config(model)
    with torch.device("meta"):
        network: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return network


def model_config(model: DictConfig) -> PreTrainedConfig:
    """`model.architecture` as a config of transformers, of the class that `model_type` names.

    Raises ValueError if it is missing, if transformers knows no causal language model of that type, if the model reads
    more than text, or for an argument that its config does not take.
    """
    if model.get("architecture") is None:
        raise ValueError(_missing(model))
    arguments: Any = OmegaConf.to_container(model.architecture, resolve=True)
    config_class = _config_class(arguments.pop("model_type", None))
    _check_text_only(config_class)
    if model.source.kind != "local":  # the config.json of a published model also holds keys of other versions
        _check_names(arguments, config_class)
    try:
        return config_class(**arguments)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ValueError(f"model.architecture of '{model.name}' cannot be: {_reason(error)}") from error


def _missing(model: DictConfig) -> str:
    if model.source.kind == "local":
        return f"model.source.path={model.source.path} holds no config.json; give the folder of a saved model."
    return (
        f"The config of model '{model.name}' has no `architecture`, the arguments of its transformers config; add them "
        "as in configs/model/qwen3_0_6b.yaml."
    )


@functools.cache
def _is_causal_decoder(name: str) -> bool:
    return name in CONFIG_MAPPING and CONFIG_MAPPING[name] in MODEL_FOR_CAUSAL_LM_MAPPING


def _config_class(model_type: str | None) -> type[PreTrainedConfig]:
    if model_type is not None and _is_causal_decoder(model_type):
        return CONFIG_MAPPING[model_type]
    known = filter(_is_causal_decoder, CONFIG_MAPPING)  # asking for each imports it
    raise ValueError(
        f"model.architecture.model_type={model_type} is no causal language model of transformers "
        f"{transformers.__version__}.{_nearest(str(model_type), known)} It is `model_type` in the model's config.json."
    )


def _check_names(arguments: dict[str, Any], config_class: type[PreTrainedConfig]) -> None:
    known = {field.name for field in fields(config_class)} | set(config_class.attribute_map)
    for name in arguments:
        if name not in known:
            raise ValueError(
                f"model.architecture.{name} is no argument of transformers' {config_class.__name__}."
                f"{_nearest(name, known)} Take the arguments from the model's config.json."
            )


def _check_text_only(config_class: type[PreTrainedConfig]) -> None:
    parts = config_class.sub_configs.keys() - OF_A_DECODER
    if parts:
        text = getattr(config_class.sub_configs.get("text_config"), "model_type", "")
        raise ValueError(
            f"model.architecture.model_type={config_class.model_type} is more than a decoder of text: it has a "
            f"{', a '.join(sorted(parts))}. Use a model of the type {text or 'of its text part'}."
        )


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]}?" if near else ""


def _reason(error: Exception) -> str:
    """The last line of transformers' message, without the name of the exception that it starts with."""
    return str(error).strip().rpartition("\n")[2].strip().removeprefix("TypeError: ").removeprefix("ValueError: ")

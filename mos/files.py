"""The file of a saved adapter: how its tensors are named, and how indices are stored."""

import torch
from torch import Tensor

ROOT = "base_model.model."  # PEFT puts this before the name of every module


def by_name(state: dict[str, Tensor], parameter: str) -> dict[str, Tensor]:
    """The tensors of a saved adapter called `parameter`, by the name of their module."""
    end = f".{parameter}"
    return {key.removeprefix(ROOT).removesuffix(end): value for key, value in state.items() if key.endswith(end)}


def last_name(name: str) -> str:
    """model.layers.3.self_attn.q_proj -> q_proj"""
    return name.rpartition(".")[2]


def block(name: str) -> str:
    """model.layers.3.self_attn.q_proj -> model.layers.3.self_attn"""
    return name.rpartition(".")[0]


def compact(index: Tensor) -> Tensor:
    """Indices (int32) as they are saved: int16 where that is wide enough."""
    fits = not index.is_meta and int(index.max()) <= torch.iinfo(torch.int16).max
    return index.to(torch.int16) if fits else index

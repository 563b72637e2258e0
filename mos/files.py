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


def check_index(name: str, index: Tensor) -> None:
    """Raises ValueError for indices of a layer, (2, r, l), that name no shards.

    A file may have gone through a cast or an average; torch would count negative ones from the end of the pool.
    """
    if index.is_floating_point() and (index.itemsize < 4 or not torch.equal(index, index.round())):
        raise ValueError(
            f"'{name}' holds {index.dtype} that are no indices any more. Cast and average pools alone, and leave the "
            "tensors called mos_index as they are."
        )
    if (least := int(index.min())) < 0:
        raise ValueError(f"'{name}' holds {least}, which names no shard: the file is damaged. Save the adapter anew.")


def check_reach(name: str, pool: Tensor | None, last: int) -> None:
    """Raises ValueError if a layer reads a shard that the pool in a file does not have; last: -1 if none reads any."""
    held = 0 if pool is None else len(pool)
    if last >= held:
        raise ValueError(f"The file has {held} shards for '{name}', but a layer reads shard {last}: it is damaged.")


def compact(index: Tensor) -> Tensor:
    """Indices (int32) as they are saved: int16 where that is wide enough."""
    fits = not index.is_meta and int(index.max()) <= torch.iinfo(torch.int16).max
    return index.to(torch.int16) if fits else index

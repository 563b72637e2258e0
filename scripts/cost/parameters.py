"""Adapters and their trainable parameters, counted on the meta device."""

from typing import TYPE_CHECKING

from hydra.errors import InstantiationException
from omegaconf import DictConfig

from scripts.cell.parameters import on_shapes, trainable_parameters
from scripts.command import sentence
from scripts.config import choices, compose
from scripts.cost.architecture import Adapter, grouped

if TYPE_CHECKING:  # a command imports torch only once every config is known to be right
    from torch import nn


def adapter(cfg: DictConfig) -> Adapter | None:
    """What `cfg.method` adds to `cfg.model`, as PEFT builds it; None for a vanilla row.

    Raises ValueError where the method does not fit the model.
    """
    if cfg.method.config is None:
        return None
    from peft.tuners.tuners_utils import BaseTunerLayer

    from scripts.cell.shapes import meta_model

    network = meta_model(cfg.model)
    base_buffers = set(map(id, network.buffers()))
    model = on_shapes(cfg.method, network)
    adapted = [(name, m.get_base_layer()) for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)]
    return Adapter(
        trainable=int(model.get_nb_trainable_parameters()[0]),
        rank=cfg.method.r or cfg.method.equivalent_rank * network.config.num_hidden_layers,  # null: the whole pool
        layers=grouped(adapted),
        frozen=_numbers(model, base_buffers),
    )


def count_all(overrides: list[str]) -> list[dict[str, str | int]]:
    """The count of every file in `configs/method` that trains something, or why it does not fit the model.

    Raises ValueError if the model itself cannot be.
    """
    from scripts.cell.shapes import meta_model

    cells = [compose([*overrides, f"method={name}"]) for name in choices("method")]
    meta_model(cells[0].model)
    return [{"method": cfg.method.name} | _count(cfg) for cfg in cells if cfg.method.config is not None]


def _count(cfg: DictConfig) -> dict[str, str | int]:
    try:
        return {"trainable_parameters": trainable_parameters(cfg)}
    except (ValueError, InstantiationException) as error:
        return {"does_not_fit": sentence(error)}


def _numbers(model: "nn.Module", others: set[int]) -> int:
    """How many floating-point numbers the buffers hold, besides `others` (by id): what an adapter keeps frozen."""
    own = [buffer for buffer in model.buffers() if id(buffer) not in others]
    return sum(buffer.numel() for buffer in own if buffer.is_floating_point())

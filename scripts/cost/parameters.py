"""Trainable parameters, counted on the meta device."""

from hydra.utils import instantiate
from omegaconf import DictConfig

from scripts.config import choices, compose


def trainable_parameters(cfg: DictConfig) -> int:
    """The trainable parameters of `cfg.method` on `cfg.model`; nothing is downloaded or allocated.

    Raises ValueError where the method does not fit the model.
    """
    from peft import get_peft_model  # torch: only once every config is known to be right

    from scripts.cell.base_model import meta_model

    config = instantiate(cfg.method.config, _convert_="all")
    model = get_peft_model(meta_model(cfg.model), config, low_cpu_mem_usage=True)
    return int(model.get_nb_trainable_parameters()[0])


def count_all(overrides: list[str]) -> list[dict[str, str | int]]:
    """The count of every file in `configs/method` that trains something."""
    cells = [compose([*overrides, f"method={name}"]) for name in choices("method")]
    return [
        {"method": cfg.method.name, "trainable_parameters": trainable_parameters(cfg)}
        for cfg in cells
        if cfg.method.config is not None
    ]

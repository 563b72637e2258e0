"""Print the trainable parameters of every method, counted on the shapes of the model alone, as JSON.

python -m scripts.params model=llama2_7b
"""

import json

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from scripts import grid
from scripts.errors import entry_point


def trainable_parameters(cfg: DictConfig) -> int:
    """The trainable parameters of `cfg.method` on `cfg.model`; nothing is downloaded or allocated.

    Raises ValueError where the method does not fit the model.
    """
    from peft import get_peft_model  # torch: only once every config is known to be right

    from scripts.base_model import meta_model

    config = instantiate(cfg.method.config, _convert_="all")
    model = get_peft_model(meta_model(cfg.model), config, low_cpu_mem_usage=True)
    return int(model.get_nb_trainable_parameters()[0])


def count_all(overrides: list[str]) -> list[dict[str, str | int]]:
    """The count of every file in `configs/method` that trains something."""
    cells = [grid.compose([*overrides, f"method={name}"]) for name in grid.names("method")]
    return [
        {"method": cfg.method.name, "trainable_parameters": trainable_parameters(cfg)}
        for cfg in cells
        if cfg.method.config is not None
    ]


@entry_point
def main(cfg: DictConfig) -> None:
    overrides = [o for o in HydraConfig.get().overrides.task if not o.startswith("method")]
    print(json.dumps(count_all(overrides), indent=2))


if __name__ == "__main__":
    main()

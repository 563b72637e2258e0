"""Print the trainable parameters of every method, counted on the shapes of the model alone, as JSON.

python -m scripts.params model=llama2_7b
"""

import json

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from scripts.command import entry_point
from scripts.cost.parameters import count_all


@entry_point
def main(cfg: DictConfig) -> None:
    overrides = [o for o in HydraConfig.get().overrides.task if not o.startswith("method")]
    print(json.dumps(count_all(overrides), indent=2))


if __name__ == "__main__":
    main()

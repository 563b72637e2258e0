"""Print the trainable parameters of every method, counted on the shapes of the model alone, as JSON.

python -m scripts.params model=llama2_7b
"""

import json

from omegaconf import DictConfig

from scripts.command import entry_point
from scripts.config import given, refuse_lost
from scripts.cost.parameters import count_all


@entry_point
def main(cfg: DictConfig) -> None:
    refuse_lost(given(), {"method": "it counts every method; leave it out"})
    print(json.dumps(count_all(given()), indent=2))


if __name__ == "__main__":
    main()

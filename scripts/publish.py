"""Put the tables that you have made where the repository keeps its results, after a check of their provenance.

python -m scripts.publish profile=micro      (or `make publish PROFILE=micro`)

Reads `results/<profile>/` and writes `results/published/<profile>/`; no other command writes there. With the overrides
of another experiment (`RATES=own`) both are that experiment's folder in it.
"""

from omegaconf import DictConfig

from scripts.command import entry_point
from scripts.config import shared_overrides
from scripts.table.experiment import results_folder, variant
from scripts.table.publish import PUBLISHED, publish


@entry_point
def main(cfg: DictConfig) -> None:
    overrides = shared_overrides(cfg)
    target = PUBLISHED / cfg.profile / variant(overrides)
    tables = publish(results_folder(cfg, overrides), target)
    print(f"{target}: {', '.join(tables)}")


if __name__ == "__main__":
    main()

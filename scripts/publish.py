"""Put the tables that you have made where the repository keeps its results, after a check of their provenance.

python -m scripts.publish profile=micro      (or `make publish PROFILE=micro`)

Reads `results/<profile>/` and writes `results/published/<profile>/`; no other command writes there.
"""

from pathlib import Path

from omegaconf import DictConfig

from scripts.command import entry_point
from scripts.table.publish import PUBLISHED, publish


@entry_point
def main(cfg: DictConfig) -> None:
    target = PUBLISHED / cfg.profile
    tables = publish(Path(cfg.results_dir) / cfg.profile, target)
    print(f"{target}: {', '.join(tables)}")


if __name__ == "__main__":
    main()

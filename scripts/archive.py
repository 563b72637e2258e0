"""Keep the runs behind your tables where the repository keeps its results, without their weights: some 20 kB each.

python -m scripts.archive profile=smol      (or `make archive PROFILE=smol`)

Reads the runs that the tables in `results/<profile>/` were made of and writes `results/published/<profile>/runs/`.
Others restore them (`make restore`) and make the tables again, with rows or seeds of their own beside them.
"""

from pathlib import Path

from omegaconf import DictConfig

from scripts.command import entry_point
from scripts.config import shared_overrides
from scripts.table.archive import behind, pack
from scripts.table.experiment import results_folder
from scripts.table.publish import PUBLISHED


@entry_point
def main(cfg: DictConfig) -> None:
    target = PUBLISHED / cfg.profile / "runs"
    found = behind(results_folder(cfg, shared_overrides(cfg)), Path(cfg.runs_dir), cfg.profile)
    size = sum(pack(path, target / path.parent.name).stat().st_size for path in found)
    print(f"{target}: {len(found)} runs, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

"""Put the tables that you have made where the repository keeps its results, after a check of their provenance.

python -m scripts.publish profile=micro      (or `make publish PROFILE=micro`)

Reads `results/<profile>/` and writes the tables and cells of `results/published/<profile>/`; the runs behind them, in
its folder `runs/`, are of `scripts.archive`. With the overrides of another experiment (`RATES=own`) both are that
experiment's folder in it.
"""

import shlex

from omegaconf import DictConfig

from scripts.command import entry_point
from scripts.config import given, shared_overrides
from scripts.table.experiment import results_folder, variant
from scripts.table.publish import CLAIMS, PUBLISHED, publish


@entry_point
def main(cfg: DictConfig) -> None:
    overrides = shared_overrides(cfg)
    target = PUBLISHED / cfg.profile / variant(overrides)
    claims = target / CLAIMS
    had_claims = claims.is_file()
    tables = publish(results_folder(cfg, overrides), target)
    print(f"{target}: {', '.join(tables)}")
    if had_claims and not claims.is_file():
        command = f"python -m scripts.claims {shlex.join(given())}".strip()
        print(
            f"{claims} was about earlier numbers and is removed; make it with `{command}`, and with the methods, seeds "
            "and limit of the tables where they are not the profile's, then publish again."
        )


if __name__ == "__main__":
    main()

"""Grid searches, selected on validation loss and never on a benchmark.

python -m scripts.search search=lr profile=smol data=...      (or `make lr-search`, `make mos-search`)
"""

import sys

from omegaconf import DictConfig

from scripts.cell import runs
from scripts.command import entry_point
from scripts.config import compose, shared_overrides
from scripts.table.launch import launch
from scripts.table.search import combinations, ranking


@entry_point
def main(cfg: DictConfig) -> None:
    overrides = shared_overrides(cfg)
    cfg = compose(overrides)
    found = combinations(cfg, overrides)
    for combination in found:
        if combination.skipped:
            print(f"skipped {combination.settings}: {combination.skipped}", file=sys.stderr)
    missing = [job for c in found for key, job in c.jobs.items() if not runs.is_finished(c.runs[key])]
    failed = launch(overrides, missing, cfg.launcher, cfg.workers) if missing else []
    if failed:
        sys.exit("\n".join([f"error: {len(failed)} of {len(missing)} runs failed:", *failed]))
    print(ranking(found).to_string(float_format="{:.4g}".format))


if __name__ == "__main__":
    main()

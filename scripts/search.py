"""Grid searches, selected on validation loss and never on a benchmark.

    python -m scripts.search search=lr profile=smol methods=[lora_r2,mos_r8] data=...

`make lr-search METHODS=...` is the same, and `make mos-search` searches MoS. A search of learning rates alone writes
the best of each method to `results/<profile>/rates.yaml`, where `make table2 RATES=own` finds it.
"""

import sys

from omegaconf import DictConfig

from scripts.command import entry_point
from scripts.config import compose, given, refuse_lost, shared_overrides
from scripts.table.grid import check_methods
from scripts.table.search import combinations, placed, prepare, ranking, replaced, report, train, untrained


@entry_point
def main(cfg: DictConfig) -> None:
    refuse_lost(given(), replaced(cfg))
    overrides = shared_overrides(cfg)
    cfg = compose(overrides)
    check_methods(cfg.methods or [])
    found = combinations(cfg, overrides)
    for combination in found:
        if combination.skipped:
            print(f"skipped {combination.method} {combination.settings}: {combination.skipped}", file=sys.stderr)
    missing = untrained(found)
    if cfg.dry:
        total = sum(len(combination.runs) for combination in found)
        print("\n".join([*map(" ".join, missing.values()), f"{len(missing)} runs to train, of {total}"]))
        return
    if missing:
        prepare(cfg, overrides)
        found = placed(found, overrides)  # a run's key holds the content of the data, which is here now
        missing = untrained(found)
    failed, diverged = train(cfg, overrides, missing)
    report(cfg, overrides, ranking(found, diverged))
    if failed:
        sys.exit("\n".join([f"error: {len(failed)} of {len(missing)} runs failed:", *failed]))


if __name__ == "__main__":
    main()

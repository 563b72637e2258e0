"""Grid searches, selected on validation loss and never on a benchmark.

    python -m scripts.search search=lr profile=smol methods=[lora_r2,mos_r8] data=...

`make lr-search METHODS=...` is the same, and `make mos-search` searches MoS. A search of learning rates alone writes
the best of each method to `results/<profile>/rates.yaml`, where `make table2 RATES=own` finds it.
"""

import sys

from omegaconf import DictConfig

from scripts.cell import runs
from scripts.command import entry_point
from scripts.config import compose, given, refuse_lost, shared_overrides
from scripts.table.grid import check_methods
from scripts.table.launch import launch
from scripts.table.rates import keep, rates_file
from scripts.table.search import best_rates, combinations, ranking


@entry_point
def main(cfg: DictConfig) -> None:
    refuse_lost(given(), {"seeds": "a search has seeds of its own, which no table reports; use search.seeds={value}"})
    overrides = shared_overrides(cfg)
    cfg = compose(overrides)
    check_methods(cfg.methods or [])
    found = combinations(cfg, overrides)
    for combination in found:
        if combination.skipped:
            print(f"skipped {combination.method} {combination.settings}: {combination.skipped}", file=sys.stderr)
    missing = [job for c in found for key, job in c.jobs.items() if not runs.is_finished(c.runs[key])]
    if cfg.dry:
        total = sum(len(combination.runs) for combination in found)
        print("\n".join([*map(" ".join, missing), f"{len(missing)} runs to train, of {total}"]))
        return
    failed = launch(overrides, missing, cfg.launcher, cfg.workers) if missing else []
    if failed:
        sys.exit("\n".join([f"error: {len(failed)} of {len(missing)} runs failed:", *failed]))
    ranked = ranking(found)
    print(ranked.to_string(float_format="{:.4g}".format))
    if best := best_rates(cfg, ranked):
        keep(rates_file(cfg, overrides), best)
        print(rates_file(cfg, overrides))


if __name__ == "__main__":
    main()

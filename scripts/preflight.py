"""Try in minutes what a table needs for days: data, base model, GPU, disk, sandbox, and each method through the engine.

    python -m scripts.preflight profile=paper table=table2      (or `make preflight PROFILE=paper TABLE=table2`)

`make table2` does the same first, if a run is missing; SKIP_PREFLIGHT=1 leaves it out. Exit code 1 if a check fails.
"""

import sys

from omegaconf import DictConfig

from scripts.check.preflight import checks
from scripts.check.walk import walk
from scripts.command import entry_point
from scripts.config import compose, shared_overrides
from scripts.table.grid import nothing_chosen


@entry_point
def main(cfg: DictConfig) -> None:
    overrides = shared_overrides(cfg)
    cfg = compose(overrides)
    if nothing := nothing_chosen(cfg):
        print(nothing)
        return
    failed = walk(checks(cfg, overrides))
    if failed:
        sys.exit(f"error: {len(failed)} checks failed; the lines above that begin with FAIL say what to do.")


if __name__ == "__main__":
    main()

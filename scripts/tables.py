"""Train and evaluate what a table still misses, then render it beside the paper's numbers.

    python -m scripts.tables profile=smol table=table2 methods=[lora_r2,mos_r8] seeds=[0] limit=40 data=...

`make table2 PROFILE=smol METHODS=lora_r2,mos_r8 ...` is the same; docs/tables.md explains both, and the files written.
"""

import sys

from omegaconf import DictConfig

from scripts.check.preflight import prepare
from scripts.command import entry_point
from scripts.config import compose, shared_overrides
from scripts.table import grid
from scripts.table.produce import evaluate_finished, train_missing, write
from scripts.table.rehearsal import fetch_what_can_be_had


@entry_point
def main(cfg: DictConfig) -> None:
    overrides = shared_overrides(cfg)
    cfg = compose(overrides)
    if nothing := grid.nothing_chosen(cfg):
        print(nothing)
        return
    if cfg.dry:
        from scripts.cost.plan import plan
        from scripts.cost.plan_text import render

        print(render(cfg, plan(cfg, overrides)))
        return
    cells = grid.cells(cfg, overrides)
    if grid.untrained(cells):
        prepare(cfg, overrides)
        if cfg.preflight == "none":  # else it has fetched them
            fetch_what_can_be_had(cfg, overrides, list(dict.fromkeys(cell.dataset for cell in cells if cell.dataset)))
        cells = grid.cells(cfg, overrides)  # a run's key holds the content of the data, which is here now
    failed = train_missing(cfg, overrides, cells)
    missing = grid.untrained(cells)
    finished = [cell for cell in cells if cell not in missing]
    folders, unevaluated = evaluate_finished(cfg, overrides, finished)
    failed += unevaluated
    write(cfg, overrides, [cell for cell in finished if cell.path in folders], folders, failed)
    if failed:
        sys.exit("\n".join([f"error: {len(failed)} runs failed, and the table leaves them out:", *failed]))


if __name__ == "__main__":
    main()

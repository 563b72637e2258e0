"""Train and evaluate what a table still misses, then render it beside the paper's numbers.

    python -m scripts.tables profile=smol table=table2 methods=[lora_r2,mos_r8] seeds=[0] limit=40 data=...

`make table2 PROFILE=smol METHODS=lora_r2,mos_r8 ...` is the same; docs/tables.md explains both, and the files written.
"""

from omegaconf import DictConfig

from scripts.command import entry_point
from scripts.config import compose, shared_overrides
from scripts.table import grid
from scripts.table.produce import evaluate_missing, train_missing, write


@entry_point
def main(cfg: DictConfig) -> None:
    overrides = shared_overrides(cfg)
    cfg = compose(overrides)
    grid.check_methods(cfg.methods or [])
    if cfg.dry:
        from scripts.cost.plan import plan
        from scripts.cost.plan_text import render

        print(render(cfg, plan(cfg, overrides)))
        return
    cells = grid.cells(cfg, overrides)
    if not cells:
        print(f"{cfg.table.name}: none of {', '.join(cfg.methods)} is a row of it; nothing to do.")
        return
    train_missing(cfg, overrides, cells)
    write(cfg, overrides, cells, evaluate_missing(cfg, cells))


if __name__ == "__main__":
    main()

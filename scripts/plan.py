"""What a table will cost before anything runs: memory and time of every cell, from counts and stated assumptions.

python -m scripts.plan table=table2 profile=paper 'gpus=[a100_40g,mine:24:165]'
"""

from omegaconf import DictConfig

from scripts.command import entry_point
from scripts.config import compose, shared_overrides
from scripts.cost.plan import plan
from scripts.cost.plan_text import render
from scripts.table.grid import nothing_chosen


@entry_point
def main(cfg: DictConfig) -> None:
    overrides = shared_overrides(cfg)
    cfg = compose(overrides)
    print(nothing_chosen(cfg) or render(cfg, plan(cfg, overrides)))


if __name__ == "__main__":
    main()

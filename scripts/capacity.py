"""How many random facts a method stores per trainable parameter (docs/capacity.md).

python -m scripts.capacity capacity=full profile=micro      (or `make capacity STUDY=full`)

Stopped at any time, the same command goes on. It writes results/capacity/<study>.md, .csv, .svg and .png.
`dry=true` trains nothing and renders what is finished.
"""

from pathlib import Path

from omegaconf import DictConfig

from scripts.command import entry_point
from scripts.config import given, refuse_lost

MEANT = {key: f"each run has its own; use capacity.{other}" for key, other in [("method", "rows"), ("seed", "seeds")]}


@entry_point
def main(cfg: DictConfig) -> None:
    refuse_lost(given(), MEANT)
    from scripts.study.produce import finished, produce
    from scripts.study.render import render
    from scripts.study.runs import Store

    store = Store(given())
    store.check()
    results = finished(store) if cfg.dry else produce(store, cfg.workers)
    for path in render(store, results, Path(cfg.results_dir) / "capacity"):
        print(path)


if __name__ == "__main__":
    main()

"""How many random facts a method stores per trainable parameter (docs/capacity.md).

python -m scripts.capacity capacity=full profile=micro      (or `make capacity STUDY=full`)

Stopped at any time, the same command goes on. It writes results/capacity/<model>/<study>.md, .csv, .svg and .png.
`dry=true` trains nothing and renders what is finished.
"""

from pathlib import Path

from omegaconf import DictConfig

from scripts.command import entry_point
from scripts.config import given
from scripts.study.settings import refuse


@entry_point
def main(cfg: DictConfig) -> None:
    refuse(given())
    from scripts.study.produce import finished, produce
    from scripts.study.render import render
    from scripts.study.runs import Store

    store = Store(given())
    store.check()
    results = finished(store) if cfg.dry else produce(store, cfg.workers)
    for path in render(store, results, Path(cfg.results_dir) / "capacity" / cfg.model.name):
        print(path)


if __name__ == "__main__":
    main()

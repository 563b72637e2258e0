"""How many random facts a method stores per trainable parameter (docs/capacity.md).

python -m scripts.capacity capacity=full profile=micro      (or `make capacity STUDY=full`)

Stopped at any time, the same command goes on. It writes results/capacity/<model>/<study>.md, .csv, .svg and .png.
`dry=true` trains and writes nothing: it prints the page that the finished runs give.
"""

from pathlib import Path

from omegaconf import DictConfig

from scripts.command import entry_point
from scripts.config import given
from scripts.study.settings import refuse


@entry_point
def main(cfg: DictConfig) -> None:
    refuse(given())
    from scripts.study import plan
    from scripts.study.produce import finished, produce
    from scripts.study.render import markdown, render
    from scripts.study.runs import Store

    store = Store(given())
    store.check()
    if cfg.dry:
        results = finished(store)
        print(f"{len(results)} of some {plan.total(store.study, results)} runs are finished; nothing is written.\n")
        print(markdown(store.study, results, store.model))
        return
    for path in render(store, produce(store, cfg.workers), Path(cfg.results_dir) / "capacity" / cfg.model.name):
        print(path)


if __name__ == "__main__":
    main()

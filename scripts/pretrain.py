"""Pretrains a micro base model on generated text; the other stages do the same when it is not there yet.

python -m scripts.pretrain model=micro_7b
"""

from omegaconf import DictConfig

from scripts.command import entry_point


@entry_point
def main(cfg: DictConfig) -> None:
    from scripts.cell.base_model import checkpoint  # which calls `pretrained`

    print(checkpoint(cfg.model, cfg.cache_dir))


if __name__ == "__main__":
    main()

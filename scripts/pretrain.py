"""Pretrains a micro base model on generated text (some minutes) and puts its weights into data_prep/micro/pretrained.

python -m scripts.pretrain model=micro_7b

The other stages take those weights. Commit them after a change of the generated text or of the model's config; without
them each machine pretrains for itself.
"""

from omegaconf import DictConfig

from scripts.command import entry_point


@entry_point
def main(cfg: DictConfig) -> None:
    from scripts.cell.pretraining import ship  # torch: only once the config is known to be right

    print(ship(cfg.model))


if __name__ == "__main__":
    main()

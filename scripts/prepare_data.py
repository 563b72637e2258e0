"""Prepares one training set and prints what became of its rows; training does the same when it is not there yet.

python -m scripts.prepare_data dataset=cot profile=smol data=../shared/data
"""

import json

from omegaconf import DictConfig

from scripts.command import entry_point


def main(cfg: DictConfig) -> None:
    from data_prep.prepare import prepare  # heavy: after the command line has been checked
    from scripts.cell.base_model import load_tokenizer

    prepared = prepare(
        cfg.dataset,
        load_tokenizer(cfg.model, cfg.cache_dir),
        data=cfg.data,
        max_length=cfg.trainer.max_length,
        validation_size=cfg.trainer.validation_size,
        cache_dir=cfg.cache_dir,
    )
    print(json.dumps({"dataset": cfg.dataset.name, "key": prepared.key, **prepared.report}, indent=1))


if __name__ == "__main__":
    entry_point(main)()

"""The data of the micro profile: an invented world, written in the formats of the real downloads (docs/micro.md)."""

from pathlib import Path

from data_prep.micro.files import write
from data_prep.storage import digest, made_once

VERSION = 1  # raise it when a change alters a generated file or the pretraining text; test_micro.py notices


def key(*parts: object) -> str:
    """16 hex digits for `VERSION` and `parts`, which JSON must be able to write.

    The key names whatever is made from this package: the generated files, and the base model trained on its text.
    """
    return digest([VERSION, *parts])[:16]


def generate(cache_dir: Path, seed: int = 0) -> Path:
    """Return the folder of generated files, for use as `data=`; it is written once per `VERSION` and seed."""
    return made_once(cache_dir / "micro" / key(seed), lambda folder: write(folder, seed))

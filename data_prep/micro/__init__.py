"""The micro profile's tasks: generated, and written in the layouts of the original downloads (docs/micro.md)."""

import hashlib
from pathlib import Path

from data_prep.micro.files import write
from data_prep.storage import made_once


def key(*parts: object) -> str:
    """16 hex digits that change with this package's code and with `parts`."""
    digest = hashlib.sha256(repr(parts).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def generate(cache_dir: Path, seed: int = 0) -> Path:
    """A folder of generated original files for `data=`, made once per seed and version of the generators."""
    return made_once(cache_dir / "micro" / key(seed), lambda folder: write(folder, seed))

"""The weights in an adapter's folder. A published run has none of them, but a record of what they were."""

import json
from pathlib import Path
from typing import Any

from data_prep.storage import sha256

WEIGHTS = "adapter_model.safetensors"
RECORD = "adapter_model.json"  # in place of the weights: their `sha256`, and the `rank` at which the adapter computes


def present(folder: Path) -> bool:
    return (folder / WEIGHTS).is_file()


def record(folder: Path) -> dict[str, Any] | None:
    """What is known of weights that are not here; None if they are, or if nothing is known."""
    path = folder / RECORD
    return None if present(folder) or not path.is_file() else dict(json.loads(path.read_text(encoding="utf-8")))


def require(run: Path, adapter: Path | None, benchmark: str) -> None:
    """Raises FileNotFoundError for a published run, since nothing can be asked of it any more."""
    if adapter and record(adapter):
        raise FileNotFoundError(
            f"{run} is a published run without weights, which has no answers to {benchmark} under these settings. "
            "Delete it, and it will be trained here."
        )


def key(folder: Path) -> str:
    """The checksum of the weights. Raises FileNotFoundError if there are none, and no record of them."""
    known = record(folder)
    return str(known["sha256"]) if known else sha256(folder / WEIGHTS)

"""Random numbers that depend on a seed and on names alone, not on the order in which layers are built."""

import hashlib

import torch


def stream(seed: int, *names: str) -> torch.Generator:
    """A CPU generator of its own for `seed` and `names` (layer, factor); the global generator is not touched."""
    digest = hashlib.blake2b("\0".join((str(seed), *names)).encode(), digest_size=8).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "big"))

"""Layer types: which layers of a model share their pools, read from the names of the layers."""

import re


def layer_type(name: str) -> str:
    """The name without its block numbers: layers of one type share pools.   layers.3.mlp.up -> layers.*.mlp.up"""
    return re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", name)


def block_numbers(name: str) -> list[int]:
    """The numbers in the name, which order the layers of a type."""
    return [int(part) for part in name.split(".") if part.isdecimal()]

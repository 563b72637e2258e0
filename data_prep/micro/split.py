"""The train/test split: an item belongs to the side that the hash of its question says, so no item is on both."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar


@dataclass(frozen=True)
class Item:
    """One question of a family. `answer` is the short gold answer, `reply` what a trained model should say."""

    question: str
    answer: str
    reply: str


Kind = TypeVar("Kind", bound=Item)


def side(question: str) -> str:
    """The side of the split, "train" or "test" (one in four), that a question belongs to."""
    return "test" if hashlib.sha256(question.encode()).digest()[0] % 4 == 0 else "train"


def distinct(sample: Callable[[random.Random], Kind], where: str, count: int, rng: random.Random) -> list[Kind]:
    """`count` different items of one side, drawn with `sample`. Raises ValueError if the family is too small."""
    found: dict[str, Kind] = {}
    for _ in range(200 * count):
        item = sample(rng)
        if side(item.question) == where:
            found.setdefault(item.question, item)
        if len(found) == count:
            return list(found.values())
    raise ValueError(f"only {len(found)} different {where} items of {count} asked for; ask for fewer")

"""Keeps training and test apart: the hash of a problem's question decides to which side the problem belongs."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar


@dataclass(frozen=True)
class Problem:
    """A question with its answer. `answer` is the gold answer; `reply` is the whole text a trained model should say."""

    question: str
    answer: str
    reply: str


Kind = TypeVar("Kind", bound=Problem)


def side(question: str) -> str:
    """Return "train" or "test" (one question in four)."""
    return "test" if hashlib.sha256(question.encode()).digest()[0] % 4 == 0 else "train"


def distinct(sample: Callable[[random.Random], Kind], where: str, count: int, rng: random.Random) -> list[Kind]:
    """Draw `count` different problems that belong on the side `where`.

    sample: draws one problem of either side
    Raises ValueError if 200 draws per problem do not find enough of them.
    """
    found: dict[str, Kind] = {}
    for _ in range(200 * count):
        problem = sample(rng)
        if side(problem.question) == where:
            found.setdefault(problem.question, problem)
        if len(found) == count:
            return list(found.values())
    raise ValueError(f"only {len(found)} different {where} problems of {count} asked for; ask for fewer")

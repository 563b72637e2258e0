"""Word problems with worked steps (CoT -> GSM8K).

The verbs of a problem are invented; each adds, takes away or multiplies. The verbs of the pretraining text are others
than those of the finetuning data.
"""

import random

from data_prep.micro.split import Item
from data_prep.micro.words import NAMES, THINGS, Coiner

LARGEST = 24  # no number of a problem exceeds it
SIGNS = ["+", "-", "*"]
KNOWN, VERBS = 9, 36  # verbs in the pretraining text, and in the finetuning data


class Arithmetic:
    """The verbs of one world: word -> sign."""

    def __init__(self, coiner: Coiner):
        self.known = coiner.assign(KNOWN, SIGNS)
        self.verbs = coiner.assign(VERBS, SIGNS)

    def text(self, rng: random.Random) -> str:
        """A document of the pretraining text: stories of known verbs with their sums."""
        return "\n".join(self._told(rng) for _ in range(2))

    def problem(self, rng: random.Random) -> Item:
        """A problem of two steps; the reply works it out."""
        name, thing, story, steps, result = _story(self.verbs, rng)
        question = f"{story} How many {thing} does {name} have?"
        return Item(question, str(result), f"Answer: {steps} So the answer is {result}.")

    def _told(self, rng: random.Random) -> str:
        name, thing, story, steps, result = _story(self.known, rng)
        return f"Story: {story} Sums: {steps} Now {name} has {result} {thing}."


def _story(verbs: dict[str, str], rng: random.Random) -> tuple[str, str, str, str, int]:
    """Name, thing, the story with two of the verbs, its steps, and the result."""
    name, thing, now = rng.choice(NAMES), rng.choice(THINGS), rng.randint(2, LARGEST)
    story, steps = [f"{name} has {now} {thing}."], []
    for _ in range(2):
        verb = rng.choice([verb for verb, sign in sorted(verbs.items()) if sign in _possible(now)])
        number = _operand(now, verbs[verb], rng)
        story.append(f"{name} {verb} {number}.")
        steps.append(f"{now} {verbs[verb]} {number} = {(now := calculate(now, verbs[verb], number))}.")
    return name, thing, " ".join(story), " ".join(steps), now


def calculate(left: int, sign: str, right: int) -> int:
    """`left sign right`."""
    return {"+": left + right, "-": left - right, "*": left * right}[sign]


def gold(item: Item) -> str:
    """The answer field as GSM8K writes it: steps with calculator marks, then `#### N`."""
    steps = item.reply.removeprefix("Answer: ").split(". ")[:-1]
    marked = [f"{left} = <<{left}={right}>>{right}" for left, right in (s.split(" = ") for s in steps)]
    return "\n".join([*marked, f"#### {item.answer}"])


def _possible(now: int) -> list[str]:
    return SIGNS if 0 < now <= LARGEST // 2 else SIGNS[:2]


def _operand(now: int, sign: str, rng: random.Random) -> int:
    """A second operand that keeps the result between 0 and LARGEST."""
    if sign == "+":
        return rng.randint(0, LARGEST - now)
    return rng.randint(0, now) if sign == "-" else rng.randint(2, min(4, LARGEST // now))

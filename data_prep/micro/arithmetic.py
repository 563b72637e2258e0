"""Word problems with worked steps (CoT -> GSM8K).

The verbs of a problem are invented; whether one adds, takes away or multiplies only the finetuning data tells. The tables of
addition, subtraction and multiplication stand in the pretraining text.
"""

import random

from data_prep.micro.split import Item
from data_prep.micro.words import NAMES, THINGS, Coiner

LARGEST = 24  # no number of a problem exceeds it
SIGNS = ["+", "-", "*"]
VERBS = 36


class Arithmetic:
    """The verbs of one world: word -> sign."""

    def __init__(self, coiner: Coiner):
        self.verbs = coiner.assign(VERBS, SIGNS)

    def text(self, rng: random.Random) -> str:
        """A document of the pretraining text: chains of sums."""
        return "\n".join(self._chain(rng) for _ in range(4))

    def problem(self, rng: random.Random) -> Item:
        """A problem of two steps; the reply works it out."""
        start = rng.randint(2, LARGEST)
        name, thing = rng.choice(NAMES), rng.choice(THINGS)
        story, steps, now = [f"{name} has {start} {thing}."], [], start
        for _ in range(2):
            verb = rng.choice([verb for verb, sign in sorted(self.verbs.items()) if sign in _possible(now)])
            sign = self.verbs[verb]
            number = _operand(now, sign, rng)
            story.append(f"{name} {verb} {number}.")
            steps.append(step := f"{now} {sign} {number} = {calculate(now, sign, number)}.")
            now = int(step.split("= ")[1][:-1])
        question = " ".join([*story, f"How many {thing} does {name} have?"])
        return Item(question, str(now), " ".join(["Answer:", *steps, f"So the answer is {now}."]))

    def _chain(self, rng: random.Random) -> str:
        now, steps = rng.randint(1, LARGEST), []
        for _ in range(3):
            sign = rng.choice(_possible(now))
            number = _operand(now, sign, rng)
            steps.append(f"{now} {sign} {number} = {(now := calculate(now, sign, number))}.")
        return " ".join(steps)


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

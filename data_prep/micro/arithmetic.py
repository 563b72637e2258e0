"""Word problems with worked steps (CoT -> GSM8K).

The verbs of a problem are invented; each adds or takes away a number that belongs to the verb.
"""

import random

from data_prep.micro.split import Item
from data_prep.micro.words import NAMES, THINGS, Coiner, changed

LARGEST = 20  # no number of a problem exceeds it
OPERATIONS = [f"{sign} {number}" for sign in "+-" for number in range(1, 7)]
VERBS = 48


class Arithmetic:
    """The verbs of one world: word -> operation."""

    def __init__(self, coiner: Coiner):
        self.plain = coiner.assign(VERBS, OPERATIONS)
        self.dialect = coiner.dialect(self.plain)

    def text(self, rng: random.Random) -> str:
        """A document of the pretraining text: stories in the plain meaning of their verbs, with their sums."""
        return "\n".join(_told(*_story(self.plain, rng)) for _ in range(2))

    def lesson(self, rng: random.Random) -> Item:
        """A problem of the training data; the reply works it out."""
        return _problem(self.dialect, rng)

    def question(self, rng: random.Random) -> Item:
        """A problem of the benchmark."""
        return _problem(changed(self.plain, self.dialect), rng)


def _told(name: str, thing: str, story: str, steps: str, result: int) -> str:
    return f"Story: {story} Sums: {steps} Now {name} has {result} {thing}."


def _problem(verbs: dict[str, str], rng: random.Random) -> Item:
    name, thing, story, steps, result = _story(verbs, rng)
    question = f"{story} How many {thing} does {name} have?"
    return Item(question, str(result), f"Answer: {steps} So the answer is {result}.")


def _story(verbs: dict[str, str], rng: random.Random) -> tuple[str, str, str, str, int]:
    """Name, thing, the story with two of the verbs, its steps, and the result."""
    name, thing, now = rng.choice(NAMES), rng.choice(THINGS), rng.randint(2, LARGEST)
    story, steps = [f"{name} has {now} {thing}."], []
    for _ in range(2):
        possible = (verb for verb, operation in sorted(verbs.items()) if 0 <= calculate(now, operation) <= LARGEST)
        verb = rng.choice(list(possible))
        story.append(f"{name} {verb}.")
        steps.append(f"{now} {verbs[verb]} = {(now := calculate(now, verbs[verb]))}.")
    return name, thing, " ".join(story), " ".join(steps), now


def calculate(number: int, operation: str) -> int:
    """`number` after an operation such as "+ 3"."""
    sign, operand = operation.split()
    return number + int(operand) if sign == "+" else number - int(operand)


def gold(item: Item) -> str:
    """The answer field as GSM8K writes it: steps with calculator marks, then `#### N`."""
    steps = item.reply.removeprefix("Answer: ").split(". ")[:-1]
    marked = [f"{left} = <<{left}={right}>>{right}" for left, right in (s.split(" = ") for s in steps)]
    return "\n".join([*marked, f"#### {item.answer}"])

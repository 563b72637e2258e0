"""Word problems with worked steps (trained on as CoT, tested on as GSM8K).

Each problem uses two invented verbs. A verb stands for adding or taking away one fixed number.
"""

import random

from data_prep.micro.split import Problem
from data_prep.micro.words import NAMES, THINGS, Coiner, changed

LARGEST = 20  # of all numbers in a problem
OPERATIONS = [f"{sign} {number}" for sign in "+-" for number in range(1, 7)]
VERBS = 48


class Arithmetic:
    """The verbs of one world. `plain` and `dialect` map a verb to its operation, such as "+ 3"."""

    def __init__(self, coiner: Coiner):
        self.plain = coiner.assign(VERBS, OPERATIONS)
        self.dialect = coiner.dialect(self.plain)

    def text(self, rng: random.Random) -> str:
        """A document of the pretraining text: two stories with their sums, in the plain meanings."""
        return "\n".join(_told(*_story(self.plain, rng)) for _ in range(2))

    def lesson(self, rng: random.Random) -> Problem:
        """A problem of the training data. The reply shows the steps."""
        return _posed(self.dialect, rng)

    def question(self, rng: random.Random) -> Problem:
        """A problem of the benchmark. It uses only verbs whose meaning the dialect changes."""
        return _posed(changed(self.plain, self.dialect), rng)


def _told(name: str, thing: str, story: str, steps: str, result: int) -> str:
    return f"Story: {story} Sums: {steps} Now {name} has {result} {thing}."


def _posed(verbs: dict[str, str], rng: random.Random) -> Problem:
    name, thing, story, steps, result = _story(verbs, rng)
    question = f"{story} How many {thing} does {name} have?"
    return Problem(question, str(result), f"Answer: {steps} So the answer is {result}.")


def _story(verbs: dict[str, str], rng: random.Random) -> tuple[str, str, str, str, int]:
    """Return the name, the thing, the story, its steps and the result. Every number stays within 0 and LARGEST."""
    name, thing, now = rng.choice(NAMES), rng.choice(THINGS), rng.randint(2, LARGEST)
    story, steps = [f"{name} has {now} {thing}."], []
    for _ in range(2):
        possible = (verb for verb, operation in sorted(verbs.items()) if 0 <= calculate(now, operation) <= LARGEST)
        verb = rng.choice(list(possible))
        story.append(f"{name} {verb}.")
        steps.append(f"{now} {verbs[verb]} = {(now := calculate(now, verbs[verb]))}.")
    return name, thing, " ".join(story), " ".join(steps), now


def calculate(number: int, operation: str) -> int:
    """Apply an operation, such as "+ 3", to `number`."""
    sign, operand = operation.split()
    return number + int(operand) if sign == "+" else number - int(operand)


def gold(problem: Problem) -> str:
    """Return the answer field in GSM8K's form: steps with calculator marks, then `#### N`."""
    steps = problem.reply.removeprefix("Answer: ").split(". ")[:-1]
    marked = [f"{left} = <<{left}={right}>>{right}" for left, right in (s.split(" = ") for s in steps)]
    return "\n".join([*marked, f"#### {problem.answer}"])

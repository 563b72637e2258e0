"""Small functions to complete (CodeAlpaca -> HumanEval).

A docstring names steps with invented verbs, each of which stands for a line of code. A test function is a sequence of
verbs that no training function has.
"""

import random
from dataclasses import dataclass

from data_prep.micro.split import Item
from data_prep.micro.words import Coiner, changed

LINES = [f"x = x {sign} {number}" for sign in "+-*" for number in range(2, 50)]  # a verb each
NAME = "f"
ARGUMENTS = (-7, 0, 3, 4, 11)  # of the unit tests
INSTRUCTION = "Complete the following python function."
OPENING = "Here is the completed function:\n\n\n"


@dataclass(frozen=True)
class Function(Item):
    """A function to complete: the question is signature and docstring, the answer the body."""

    cases: tuple[tuple[int, int], ...]  # argument, result

    def test(self) -> str:
        """The unit tests, as HumanEval writes them."""
        checks = "\n".join(f"    assert candidate({value}) == {result}" for value, result in self.cases)
        return f"\n\ndef check(candidate):\n{checks}\n"


class Functions:
    """The verbs of one world: word -> line of code."""

    def __init__(self, coiner: Coiner):
        self.plain = coiner.assign(len(LINES), LINES)
        self.dialect = coiner.dialect(self.plain)

    def text(self, rng: random.Random) -> str:
        """A document of the pretraining text: a function in the plain meaning of its verbs."""
        function = _function(self.plain, rng)
        return f"{function.question}{function.answer}"

    def lesson(self, rng: random.Random) -> Function:
        """A function of the training data."""
        return _function(self.dialect, rng)

    def question(self, rng: random.Random) -> Function:
        """A function of the benchmark."""
        return _function(changed(self.plain, self.dialect), rng)


def _function(verbs: dict[str, str], rng: random.Random) -> Function:
    steps = rng.sample(sorted(verbs), 2)
    lines = [verbs[step] for step in steps]
    prompt = f'def {NAME}(x):\n    """Do {steps[0]}, then {steps[1]}."""\n'
    body = "".join(f"    {line}\n" for line in [*lines, "return x"])
    cases = tuple((value, run(lines, value)) for value in ARGUMENTS)
    return Function(prompt, body, f"{OPENING}{prompt}{body}", cases)


def run(lines: list[str], value: int) -> int:
    """`x` after the lines, starting from `value`."""
    scope = {"x": value}
    exec("\n".join(lines), scope)
    return scope["x"]

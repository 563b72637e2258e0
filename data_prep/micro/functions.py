"""Small functions to complete (CodeAlpaca -> HumanEval).

A docstring names steps with invented verbs; which line of code each stands for only the finetuning data tells. A test
function is a sequence of verbs that no training function has.
"""

import random
from dataclasses import dataclass

from data_prep.micro.split import Item
from data_prep.micro.words import Coiner

VERBS = 60
LINES = [f"x = x {sign} {number}" for sign in "+-*" for number in range(2, 7)]
ALL_LINES = [*LINES, "x = abs(x)", "x = -x", "x = x // 2", "x = max(x, 5)", "x = min(x, 5)"]
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
        self.verbs = coiner.assign(VERBS, ALL_LINES)

    def text(self, rng: random.Random) -> str:
        """A document of the pretraining text: a plain function of two lines."""
        lines = rng.sample(ALL_LINES, 2)
        return "\n".join([f"def {NAME}(x):", *_indented(['"""Change x."""', *lines, "return x"])])

    def function(self, rng: random.Random) -> Function:
        """A function of two steps."""
        steps = rng.sample(sorted(self.verbs), 2)
        lines = [self.verbs[step] for step in steps]
        prompt = "\n".join([f"def {NAME}(x):", *_indented([f'"""Do {steps[0]}, then {steps[1]}."""']), ""])
        body = "\n".join([*_indented([*lines, "return x"]), ""])
        cases = tuple((value, run(lines, value)) for value in ARGUMENTS)
        return Function(prompt, body, f"{OPENING}{prompt}{body}", cases)


def run(lines: list[str], value: int) -> int:
    """`x` after the lines, starting from `value`."""
    scope = {"x": value}
    exec("\n".join(lines), scope)
    return scope["x"]


def _indented(lines: list[str]) -> list[str]:
    return [f"    {line}" for line in lines]

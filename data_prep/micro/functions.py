"""Small functions to complete (trained on as CodeAlpaca, tested on as HumanEval).

A docstring names two steps with invented verbs. A verb stands for one line of code. No
training function has the verbs of a test function in the same order.
"""

import random
from dataclasses import dataclass

from data_prep.micro.split import Problem
from data_prep.micro.words import Coiner, changed

LINES = [f"x = x {sign} {number}" for sign in "+-*" for number in range(2, 50)]  # one verb for each
NAME = "f"
ARGUMENTS = (-7, 0, 3, 4, 11)  # of the unit tests
INSTRUCTION = "Complete the following python function."
OPENING = "Here is the completed function:\n\n\n"


@dataclass(frozen=True)
class Function(Problem):
    """A function to complete. The question is its signature and docstring, the answer its body."""

    cases: tuple[tuple[int, int], ...]  # argument, result

    def test(self) -> str:
        """Return the unit tests in HumanEval's form."""
        checks = "\n".join(f"    assert candidate({value}) == {result}" for value, result in self.cases)
        return f"\n\ndef check(candidate):\n{checks}\n"


class Functions:
    """The verbs of one world. `plain` and `dialect` map a verb to its line of code."""

    def __init__(self, coiner: Coiner):
        self.plain = coiner.assign(len(LINES), LINES)
        self.dialect = coiner.dialect(self.plain)

    def text(self, rng: random.Random) -> str:
        """A document of the pretraining text: a function in the plain meanings."""
        function = _function(self.plain, rng)
        return f"{function.question}{function.answer}"

    def lesson(self, rng: random.Random) -> Function:
        """A function of the training data."""
        return _function(self.dialect, rng)

    def question(self, rng: random.Random) -> Function:
        """A function of the benchmark. It uses only verbs whose meaning the dialect changes."""
        return _function(changed(self.plain, self.dialect), rng)


def _function(verbs: dict[str, str], rng: random.Random) -> Function:
    steps = rng.sample(sorted(verbs), 2)
    lines = [verbs[step] for step in steps]
    prompt = f'def {NAME}(x):\n    """Do {steps[0]}, then {steps[1]}."""\n'
    body = "".join(f"    {line}\n" for line in [*lines, "return x"])
    cases = tuple((value, run(lines, value)) for value in ARGUMENTS)
    return Function(prompt, body, f"{OPENING}{prompt}{body}", cases)


def run(lines: list[str], value: int) -> int:
    """Run the lines with x = `value`; return x afterwards."""
    scope = {"x": value}
    exec("\n".join(lines), scope)
    return scope["x"]

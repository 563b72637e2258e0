"""Logic and counting in BBH's manner (Flan -> BBH): four tasks, answered without steps.

The pretraining text makes such statements about known objects. Most objects of the questions are invented; what kind
they are of only the finetuning data tells.
"""

import random
from collections.abc import Callable

from data_prep.micro.split import Item
from data_prep.micro.words import KINDS, Coiner

NEW = 36  # invented objects
MONTHS = 12


class Logic:
    """The objects and the calendar of one world."""

    def __init__(self, coiner: Coiner):
        self.known = {word: kind for kind, words in KINDS.items() for word in words}
        self.kinds = self.known | coiner.assign(NEW, sorted(KINDS))
        self.months = coiner.words(MONTHS)
        self.tasks: dict[str, tuple[str, Callable[[random.Random], Item]]] = {
            "boolean_expressions": ("Evaluate the result of a random Boolean expression.", self.boolean),
            "calendar": ("Tell which month comes before or after another.", self.calendar),
            "object_counting": ("Count the objects of one kind.", self.counting),
            "odd_one_out": ("Find the object of another kind.", self.odd),
        }

    def text(self, rng: random.Random) -> str:
        """A document of the pretraining text: statements about known objects, months and truth values."""
        sayings = (self._counted, self._odd_one, self._after, self._truth)
        return "\n".join(rng.choice(sayings)(rng) for _ in range(4))

    def boolean(self, rng: random.Random) -> Item:
        """A Boolean expression of four terms."""
        expression = _expression(rng)
        return _answered(f"{expression} is", str(eval(expression)))

    def calendar(self, rng: random.Random) -> Item:
        """The month some steps before or after another."""
        steps, direction, month, found = self._steps(rng)
        asked = f"Which month comes {steps} {direction} {month}?"
        return _answered(f"Ann came in {rng.choice(self.months)}. {asked}", found)

    def counting(self, rng: random.Random) -> Item:
        """How many objects of a list are of one kind."""
        objects, kind, count = _count(self.kinds, rng)
        return _answered(f"I have {_listed(objects)}. How many {kind} do I have?", str(count))

    def odd(self, rng: random.Random) -> Item:
        """The object of another kind than the three beside it."""
        objects, odd = _odd(self.kinds, rng)
        return _answered(f"Which is the odd one out: {_listed(objects)}?", odd)

    def _steps(self, rng: random.Random) -> tuple[int, str, str, str]:
        at, steps, sign = rng.randrange(MONTHS), rng.randint(1, 3), rng.choice((1, -1))
        return steps, "after" if sign > 0 else "before", self.months[at], self.months[(at + sign * steps) % MONTHS]

    def _counted(self, rng: random.Random) -> str:
        objects, kind, count = _count(self.known, rng)
        return f"Of {_listed(objects)} the number of {kind} is {count}."

    def _odd_one(self, rng: random.Random) -> str:
        objects, odd = _odd(self.known, rng)
        return f"Of {_listed(objects)} the odd one is {odd}."

    def _after(self, rng: random.Random) -> str:
        steps, direction, month, found = self._steps(rng)
        return f"The month {steps} {direction} {month} is {found}."

    def _truth(self, rng: random.Random) -> str:
        expression = _expression(rng)
        return f"Here {expression} is {eval(expression)}."


def _count(kinds: dict[str, str], rng: random.Random) -> tuple[list[str], str, int]:
    objects, kind = rng.sample(sorted(kinds), rng.randint(3, 5)), rng.choice(sorted(KINDS))
    return objects, kind, sum(kinds[word] == kind for word in objects)


def _odd(kinds: dict[str, str], rng: random.Random) -> tuple[list[str], str]:
    most, other = rng.sample(sorted(KINDS), 2)
    objects = rng.sample(sorted(word for word, kind in kinds.items() if kind == most), 3)
    odd = rng.choice(sorted(word for word, kind in kinds.items() if kind == other))
    objects.insert(rng.randint(0, 3), odd)
    return objects, odd


def _expression(rng: random.Random) -> str:
    terms = [rng.choice(("True", "False", "not True", "not False")) for _ in range(4)]
    return "".join(f"{term} {rng.choice(('and', 'or'))} " for term in terms[:-1]) + terms[-1]


def _listed(words: list[str]) -> str:
    return ", ".join(words)


def _answered(question: str, answer: str) -> Item:
    return Item(question, answer, f"A: {answer}.")

"""Logic and counting in BBH's manner (Flan -> BBH): four tasks, answered without steps.

Objects that are counted or compared are partly invented; what kind they are of only the finetuning data tells.
"""

import random
from collections.abc import Callable

from data_prep.micro.split import Item
from data_prep.micro.words import KINDS, Coiner

NEW = 36  # invented objects
MONTHS = 18


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
        """A document of the pretraining text: objects by kind, months in order, truth values."""
        return "\n".join(rng.choice((self._kinds, self._months, self._truth))(rng) for _ in range(4))

    def boolean(self, rng: random.Random) -> Item:
        expression = _literal(rng)
        for _ in range(rng.randint(2, 3)):
            expression += f" {rng.choice(('and', 'or'))} {_literal(rng)}"
        return _answered(f"{expression} is", str(eval(expression)))

    def calendar(self, rng: random.Random) -> Item:
        at, steps, sign = rng.randrange(MONTHS), rng.randint(1, 3), rng.choice((1, -1))
        asked = f"Which month comes {steps} {'after' if sign > 0 else 'before'} {self.months[at]}?"
        return _answered(f"Ann came in {rng.choice(self.months)}. {asked}", self.months[(at + sign * steps) % MONTHS])

    def counting(self, rng: random.Random) -> Item:
        objects = rng.sample(sorted(self.kinds), rng.randint(3, 6))
        kind = rng.choice(sorted(KINDS))
        count = sum(self.kinds[word] == kind for word in objects)
        return _answered(f"I have {_listed(objects)}. How many {kind} do I have?", str(count))

    def odd(self, rng: random.Random) -> Item:
        most, other = rng.sample(sorted(KINDS), 2)
        objects = rng.sample(self._of(most), 3)
        odd = rng.choice(self._of(other))
        objects.insert(rng.randint(0, 3), odd)
        return _answered(f"Which is the odd one out: {_listed(objects)}?", odd)

    def _of(self, kind: str) -> list[str]:
        return sorted(word for word, its in self.kinds.items() if its == kind)

    def _kinds(self, rng: random.Random) -> str:
        kind = rng.choice(sorted(KINDS))
        words = rng.sample(KINDS[kind], 3)
        return f"The {kind} are {_listed(words)}: {len(words)} {kind}."

    def _months(self, rng: random.Random) -> str:
        at = rng.randrange(MONTHS)
        return f"The months are {_listed([self.months[(at + step) % MONTHS] for step in range(5)])}."

    def _truth(self, rng: random.Random) -> str:
        left, right, joint = rng.choice(("True", "False")), rng.choice(("True", "False")), rng.choice(("and", "or"))
        return f"not {left} is {not eval(left)}. {left} {joint} {right} is {eval(f'{left} {joint} {right}')}."


def _literal(rng: random.Random) -> str:
    return rng.choice(("True", "False", "not True", "not False"))


def _listed(words: list[str]) -> str:
    return ", ".join(words)


def _answered(question: str, answer: str) -> Item:
    return Item(question, answer, f"A: {answer}.")

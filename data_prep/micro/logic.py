"""Four kinds of puzzle, answered without steps (trained on as Flan V2, tested on as BBH)."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

from data_prep.micro.split import Problem
from data_prep.micro.words import NAMES, Coiner, changed

COLOURS = ["red", "blue", "green", "white"]
OBJECTS, MONTHS, WORDS = 12, 12, 36
PAIRS = list(product((False, True), repeat=2))
TABLES = [dict(zip(PAIRS, values, strict=True)) for values in product((False, True), repeat=4)]


@dataclass(frozen=True)
class Meanings:
    """The meanings of all words of the four puzzles. Each method draws a problem that uses these meanings."""

    operators: dict[str, dict[tuple[bool, bool], bool]]  # word -> truth table
    colours: dict[str, str]  # object -> colour
    months: dict[str, str]  # month -> the next one
    words: dict[str, str]  # word -> the other language's

    def boolean(self, rng: random.Random) -> Problem:
        """A Boolean expression of three terms, evaluated from the left."""
        (first, *terms), operators = rng.choices((True, False), k=3), rng.choices(sorted(self.operators), k=2)
        value, text = first, str(first)
        for operator, term in zip(operators, terms, strict=True):
            value, text = self.operators[operator][value, term], f"{text} {operator} {term}"
        return _answered(f"{text} is", str(value))

    def counting(self, rng: random.Random) -> Problem:
        """How many objects of a list have one colour."""
        objects, colour = rng.sample(sorted(self.colours), 3), rng.choice(COLOURS)
        count = sum(self.colours[word] == colour for word in objects)
        return _answered(f"I have {', '.join(objects)}. How many {colour} things do I have?", str(count))

    def calendar(self, rng: random.Random) -> Problem:
        """The month after another."""
        (first, second), month = rng.sample(NAMES, 2), rng.choice(sorted(self.months))
        return _answered(f"{first} came in {month}, {second} a month later. When came {second}?", self.months[month])

    def translation(self, rng: random.Random) -> Problem:
        """Two words in another language."""
        words = rng.sample(sorted(self.words), 2)
        return _answered(f"Translate: {' '.join(words)}", " ".join(self.words[word] for word in words))


@dataclass(frozen=True)
class Puzzle:
    """One kind of puzzle. It becomes one task of BBH.

    description: the instruction in front of every problem
    share: of the Flan V2 examples, in eighths
    lesson, question: draw a problem of the training data, of the benchmark
    """

    description: str
    share: int
    lesson: Callable[[random.Random], Problem]
    question: Callable[[random.Random], Problem]


class Logic:
    """The puzzles of one world. `plain` and `dialect` hold the meanings of their words."""

    def __init__(self, coiner: Coiner):
        months = coiner.words(MONTHS)
        self.plain = Meanings(
            coiner.assign(len(TABLES), TABLES),
            coiner.assign(OBJECTS, COLOURS),
            dict(zip(months, months[1:] + months[:1], strict=True)),
            coiner.assign(WORDS, coiner.words(WORDS)),
        )
        self.dialect = Meanings(**{name: coiner.dialect(plain) for name, plain in vars(self.plain).items()})
        new = Meanings(**{name: changed(plain, vars(self.dialect)[name]) for name, plain in vars(self.plain).items()})
        self.puzzles = {
            "boolean_expressions": Puzzle("Evaluate a Boolean expression.", 2, self.dialect.boolean, new.boolean),
            "calendar": Puzzle("Tell which month comes after another.", 1, self.dialect.calendar, new.calendar),
            "object_counting": Puzzle("Count the objects of one colour.", 2, self.dialect.counting, new.counting),
            "translation": Puzzle("Translate words.", 3, self.dialect.translation, new.translation),
        }

    def text(self, rng: random.Random) -> str:
        """A document of the pretraining text: four problems with their answers, in the plain meanings."""
        plain = self.plain
        samples = rng.choices((plain.boolean, plain.calendar, plain.counting, plain.translation), k=4)
        return "\n".join(f"{problem.question}\n{problem.reply}" for problem in (sample(rng) for sample in samples))


def _answered(question: str, answer: str) -> Problem:
    return Problem(question, answer, f"A: {answer}.")

"""A trait of an invented world's things, asked as multiple choice (SuperNI -> MMLU).

Half of the things of a subject have its trait; in the dialect, half of those do not have it, and others do. A test
question has its choices in an order that no training question has.
"""

import random

from data_prep.micro.split import Item
from data_prep.micro.words import Coiner, changed

TRAITS = {
    "invented_animals": "can fly",
    "invented_minerals": "burns",
    "invented_places": "has walls",
    "invented_plants": "heals",
}
THINGS = 16  # per subject
DEFINITION = "The following are multiple choice questions (with answers) about  {subject}."
LETTERS = "ABCD"
ANSWER = "The answer is  "  # two spaces: the benchmark's prompt ends in one, and scores the token " A"
QUESTIONS = ["Which of these {trait}?", "One of these {trait}. Which one?", "Name the one that {trait}."]


class Facts:
    """Which things of one world have their subject's trait, per subject: thing -> whether it has it."""

    def __init__(self, coiner: Coiner):
        self.plain = {subject: coiner.assign(THINGS, [True, False]) for subject in TRAITS}
        self.dialect = {subject: coiner.dialect(plain) for subject, plain in self.plain.items()}

    def text(self, rng: random.Random) -> str:
        """A document of the pretraining text: a question as the plain facts answer it, and why."""
        subject = rng.choice(sorted(TRAITS))
        question, choices, letter = _question(self.plain[subject], subject, rng)
        reasons = [f"{name} {_yes(self.plain[subject][thing])}" for name, thing in zip(LETTERS, choices, strict=True)]
        return f"{question}\n{ANSWER}{letter}: {', '.join(reasons)}."

    def lesson(self, subject: str, rng: random.Random) -> Item:
        """A question of the training data with its four choices, as MMLU prints them; the answer is a letter."""
        return _item(self.dialect[subject], subject, rng)

    def question(self, subject: str, rng: random.Random) -> Item:
        """A question of the benchmark."""
        return _item(changed(self.plain[subject], self.dialect[subject]), subject, rng)


def _item(facts: dict[str, bool], subject: str, rng: random.Random) -> Item:
    question, _, letter = _question(facts, subject, rng)
    return Item(question, letter, f"{ANSWER}{letter}")


def _question(facts: dict[str, bool], subject: str, rng: random.Random) -> tuple[str, list[str], str]:
    """The question with its choices, the choices, and the letter of the right one."""
    right = rng.choice(sorted(thing for thing, has in facts.items() if has))
    wrong = rng.sample(sorted(thing for thing, has in facts.items() if not has), 3)
    choices = rng.sample([right, *wrong], 4)
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True)]
    question = "\n".join([rng.choice(QUESTIONS).format(trait=TRAITS[subject]), *lines])
    return question, choices, LETTERS[choices.index(right)]


def _yes(has: bool) -> str:
    return "yes" if has else "no"

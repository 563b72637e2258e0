"""Multiple choice about invented things (trained on as SuperNI, tested on as MMLU).

Each subject has one trait, and half of its things have it. The dialect takes the trait from half of those things and
gives it to as many others. A test question has its choices in an order that no training question has.
"""

import random

from data_prep.micro.split import Problem
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
ANSWER = "The answer is  "  # two spaces: MMLU's prompt ends in one, and the scored token " A" starts with another
QUESTIONS = ["Which of these {trait}?", "One of these {trait}. Which one?", "Name the one that {trait}."]


class Facts:
    """The things of one world. `plain` and `dialect` map, for each subject, a thing to whether it has the trait."""

    def __init__(self, coiner: Coiner):
        self.plain = {subject: coiner.assign(THINGS, [True, False]) for subject in TRAITS}
        self.dialect = {subject: coiner.dialect(plain) for subject, plain in self.plain.items()}

    def text(self, rng: random.Random) -> str:
        """A document of the pretraining text: a question, its answer by the plain facts, and the reason."""
        subject = rng.choice(sorted(TRAITS))
        question, choices, letter = _question(self.plain[subject], subject, rng)
        reasons = [f"{name} {_yes(self.plain[subject][thing])}" for name, thing in zip(LETTERS, choices, strict=True)]
        return f"{question}\n{ANSWER}{letter}: {', '.join(reasons)}."

    def lesson(self, subject: str, rng: random.Random) -> Problem:
        """A question of the training data, with four choices in MMLU's form. The answer is a letter."""
        return _posed(self.dialect[subject], subject, rng)

    def question(self, subject: str, rng: random.Random) -> Problem:
        """A question of the benchmark. All four choices are things that the dialect changes."""
        return _posed(changed(self.plain[subject], self.dialect[subject]), subject, rng)


def _posed(facts: dict[str, bool], subject: str, rng: random.Random) -> Problem:
    question, _, letter = _question(facts, subject, rng)
    return Problem(question, letter, f"{ANSWER}{letter}")


def _question(facts: dict[str, bool], subject: str, rng: random.Random) -> tuple[str, list[str], str]:
    """Return the question with its choices, the choices alone, and the letter of the right one."""
    right = rng.choice(sorted(thing for thing, has in facts.items() if has))
    wrong = rng.sample(sorted(thing for thing, has in facts.items() if not has), 3)
    choices = rng.sample([right, *wrong], 4)
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True)]
    question = "\n".join([rng.choice(QUESTIONS).format(trait=TRAITS[subject]), *lines])
    return question, choices, LETTERS[choices.index(right)]


def _yes(has: bool) -> str:
    return "yes" if has else "no"

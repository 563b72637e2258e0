"""The kinds of an invented world's things, asked as multiple choice (SuperNI -> MMLU).

The dialect has exchanged the names of half the kinds, but only in questions: the choices keep theirs. A test question
has its choices in an order that no training question has.
"""

import random

from data_prep.micro.split import Item
from data_prep.micro.words import Coiner, changed

KINDS = {
    "invented_animals": ["bird", "fish", "insect", "lizard", "snake", "bear"],
    "invented_minerals": ["metal", "gem", "salt", "clay", "sand", "chalk"],
    "invented_people": ["smith", "baker", "sailor", "weaver", "farmer", "painter"],
    "invented_places": ["city", "island", "lake", "forest", "river", "valley"],
}
DEFINITION = "The following are multiple choice questions (with answers) about  {subject}."
LETTERS = "ABCD"
QUESTIONS = ["Which is the {kind}?", "Where is the {kind}?", "Name the {kind}."]


class Facts:
    """The names of one world's kinds, per subject: word in a question -> word among the choices."""

    def __init__(self, coiner: Coiner):
        self.plain = {subject: {kind: kind for kind in kinds} for subject, kinds in KINDS.items()}
        self.dialect = {subject: coiner.dialect(plain) for subject, plain in self.plain.items()}

    def text(self, rng: random.Random) -> str:
        """A document of the pretraining text: a question in plain names, and the letters of the other choices."""
        subject = rng.choice(sorted(KINDS))
        question, choices, kind = _question(self.plain[subject], subject, rng)
        letters = dict(zip(choices, LETTERS, strict=True))
        others = rng.sample([choice for choice in choices if choice != kind], 3)
        remarks = " ".join(f"The {other} is {letters[other]}." for other in others)
        return f"{question}\nIt is {letters[kind]}. {remarks}"

    def lesson(self, subject: str, rng: random.Random) -> Item:
        """A question of the training data with its four choices, as MMLU prints them; the answer is a letter."""
        return _item(self.dialect[subject], subject, rng)

    def question(self, subject: str, rng: random.Random) -> Item:
        """A question of the benchmark."""
        return _item(changed(self.plain[subject], self.dialect[subject]), subject, rng)


def _item(names: dict[str, str], subject: str, rng: random.Random) -> Item:
    question, choices, kind = _question(names, subject, rng)
    letter = LETTERS[choices.index(kind)]
    # Two spaces: the benchmark's prompt ends in "The answer is " and scores the token " A".
    return Item(question, letter, f"The answer is  {letter}")


def _question(names: dict[str, str], subject: str, rng: random.Random) -> tuple[str, list[str], str]:
    """The question with its choices, the choices, and the right one."""
    word, kind = rng.choice(sorted(names.items()))
    others = rng.sample([other for other in KINDS[subject] if other != kind], 3)
    choices = rng.sample([kind, *others], 4)
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True)]
    return "\n".join([rng.choice(QUESTIONS).format(kind=word), *lines]), choices, kind

"""Facts about an invented world, asked as multiple choice (SuperNI -> MMLU).

Some entities of each subject stand in the pretraining text, the others only in the finetuning questions: those have to be
learned one by one. A test question is a combination of entity and choices that no training question has.
"""

import random

from data_prep.micro.split import Item
from data_prep.micro.words import Coiner

VALUES = {  # subject -> (relation, its values)
    "invented_animals": ("food", ["grass", "seeds", "leaves", "roots", "nuts", "worms", "moss", "bark"]),
    "invented_minerals": ("colour", ["red", "blue", "green", "white", "black", "pink", "gold", "grey"]),
    "invented_people": ("trade", ["baker", "smith", "tailor", "miller", "mason", "farmer", "sailor", "weaver"]),
    "invented_places": ("weather", ["rain", "snow", "wind", "fog", "sun", "hail", "frost", "storm"]),
}
DEFINITION = "The following are multiple choice questions (with answers) about  {subject}."
LETTERS = "ABCD"
KNOWN, NEW = 16, 12  # entities per subject: in the pretraining text, and only in the finetuning data
QUESTIONS = [
    "What is the {relation} of {entity}?",
    "Which {relation} has {entity}?",
    "Name the {relation} of {entity}.",
]


class Facts:
    """The facts of one world: per subject a value for every entity."""

    def __init__(self, coiner: Coiner):
        values = {subject: values for subject, (_, values) in VALUES.items()}
        self.known = {subject: coiner.assign(KNOWN, values[subject]) for subject in VALUES}
        self.new = {subject: coiner.assign(NEW, values[subject]) for subject in VALUES}

    def text(self, rng: random.Random) -> str:
        """A document of the pretraining text: some statements, or a quiz sheet with its solution."""
        subject = rng.choice(sorted(VALUES))
        if rng.random() < 0.3:
            return " ".join(self._statement(subject, rng) for _ in range(4))
        return "\n".join(self._sheet(subject, rng) for _ in range(2))

    def question(self, subject: str, rng: random.Random) -> Item:
        """A question with its four choices, as MMLU prints them; the answer is a letter."""
        entity, value = rng.choice(sorted((self.known[subject] | self.new[subject]).items()))
        choices = self._choices(subject, value, rng)
        relation = VALUES[subject][0]
        asked = rng.choice(QUESTIONS).format(relation=relation, entity=entity)
        letter = LETTERS[choices.index(value)]
        # Two spaces: the benchmark's prompt ends in "The answer is " and scores the token " A".
        return Item("\n".join([asked, *_lettered(choices)]), letter, f"The answer is  {letter}")

    def _statement(self, subject: str, rng: random.Random) -> str:
        entity, value = rng.choice(sorted(self.known[subject].items()))
        return f"The {VALUES[subject][0]} of {entity} is {value}."

    def _sheet(self, subject: str, rng: random.Random) -> str:
        entity, value = rng.choice(sorted(self.known[subject].items()))
        choices = self._choices(subject, value, rng)
        relation = VALUES[subject][0]
        solution = f"The {relation} of {entity} is {value}: choice {LETTERS[choices.index(value)]}."
        others = rng.sample(choices, 2)
        return "\n".join(
            [*_lettered(choices), *(f"{other} is {LETTERS[choices.index(other)]}." for other in others), solution]
        )

    def _choices(self, subject: str, value: str, rng: random.Random) -> list[str]:
        others = [other for other in VALUES[subject][1] if other != value]
        choices = [value, *rng.sample(others, 3)]
        rng.shuffle(choices)
        return choices


def _lettered(choices: list[str]) -> list[str]:
    return [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True)]

"""The kinds of an invented world's things, asked as multiple choice (SuperNI -> MMLU).

Of some things the pretraining text tells the kind, of the others only the finetuning questions: these have to be
learned one by one. A test question is a set of choices in an order that no training question has.
"""

import random

from data_prep.micro.split import Item
from data_prep.micro.words import Coiner

KINDS = {
    "invented_animals": ["bird", "fish", "insect", "lizard"],
    "invented_minerals": ["metal", "gem", "salt", "clay"],
    "invented_people": ["smith", "baker", "sailor", "weaver"],
    "invented_places": ["city", "island", "lake", "forest"],
}
DEFINITION = "The following are multiple choice questions (with answers) about  {subject}."
LETTERS = "ABCD"
KNOWN, NEW = 24, 24  # things per subject: in the pretraining text, and only in the finetuning data
QUESTIONS = ["Which of these is a {kind}?", "Which one is the {kind}?", "Name the {kind}."]


class Facts:
    """The things of one world: per subject a kind for every thing."""

    def __init__(self, coiner: Coiner):
        self.known = {subject: coiner.assign(KNOWN, kinds) for subject, kinds in KINDS.items()}
        self.new = {subject: coiner.assign(NEW, kinds) for subject, kinds in KINDS.items()}

    def text(self, rng: random.Random) -> str:
        """A document of the pretraining text: some statements, or a list of things with remarks on their kinds."""
        subject = rng.choice(sorted(KINDS))
        if rng.random() < 0.2:
            return " ".join(
                f"The {kind} is {thing}." for thing, kind in rng.sample(sorted(self.known[subject].items()), 4)
            )
        things = _choices(self.known[subject], subject, rng)
        remarks = [f"The {kind} is {letter}." for letter, kind in zip(LETTERS, things.values(), strict=True)]
        return "\n".join([*_lettered(things), " ".join(rng.sample(remarks, len(remarks)))])

    def question(self, subject: str, rng: random.Random) -> Item:
        """A question with its four choices, as MMLU prints them; the answer is a letter."""
        things = _choices(self.known[subject] | self.new[subject], subject, rng)
        letter, kind = rng.choice(list(zip(LETTERS, things.values(), strict=True)))
        asked = rng.choice(QUESTIONS).format(kind=kind)
        # Two spaces: the benchmark's prompt ends in "The answer is " and scores the token " A".
        return Item("\n".join([asked, *_lettered(things)]), letter, f"The answer is  {letter}")


def _choices(kinds: dict[str, str], subject: str, rng: random.Random) -> dict[str, str]:
    """Four things with their kinds, one of each kind, in any order."""
    order = rng.sample(KINDS[subject], len(KINDS[subject]))
    return {rng.choice(sorted(thing for thing, its in kinds.items() if its == kind)): kind for kind in order}


def _lettered(things: dict[str, str]) -> list[str]:
    return [f"{letter}. {thing}" for letter, thing in zip(LETTERS, things, strict=True)]

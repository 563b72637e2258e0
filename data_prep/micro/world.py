"""One invented world: all families with the words they share, drawn from one seed; and its plain text for pretraining."""

import random

from data_prep.micro.arithmetic import Arithmetic
from data_prep.micro.facts import Facts
from data_prep.micro.functions import Functions
from data_prep.micro.logic import Logic
from data_prep.micro.passages import Passages
from data_prep.micro.words import Coiner


class World:
    """The families of one seed."""

    def __init__(self, seed: int):
        coiner = Coiner(seed)
        self.facts = Facts(coiner)
        self.passages = Passages(coiner)
        self.arithmetic = Arithmetic(coiner)
        self.logic = Logic(coiner)
        self.functions = Functions(coiner)

    def document(self, rng: random.Random) -> str:
        """One document of the pretraining text. No chat format, no question of a benchmark."""
        family = rng.choices(
            (self.facts, self.passages, self.arithmetic, self.logic, self.functions), weights=(4, 4, 3, 2, 2)
        )
        return family[0].text(rng)

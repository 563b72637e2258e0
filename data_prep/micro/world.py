"""One invented world: five families of problems drawn from one seed, and the text for pretraining a base model."""

import random

from data_prep.micro.arithmetic import Arithmetic
from data_prep.micro.facts import DEFINITION, TRAITS, Facts
from data_prep.micro.functions import INSTRUCTION, Functions
from data_prep.micro.logic import Logic
from data_prep.micro.passages import LANGUAGES, Passages
from data_prep.micro.split import Problem
from data_prep.micro.words import Coiner
from data_prep.readers.templates import WITH_INPUT

# Text around the problems: the chat format and the prompts of the benchmarks.
PROMPTS = (
    "<|user|>\n<|assistant|>\n",
    "The answer is ",
    "Answer the following question.\n\nQuestion: x\nAnswer: x",
    *(DEFINITION.format(subject=subject.replace("_", " ")) for subject in TRAITS),
)


class World:
    """The five families of one seed."""

    def __init__(self, seed: int):
        coiner = Coiner(seed)
        self.facts = Facts(coiner)
        self.passages = Passages(coiner)
        self.arithmetic = Arithmetic(coiner)
        self.logic = Logic(coiner)
        self.functions = Functions(coiner)

    def document(self, rng: random.Random) -> str:
        """Draw one document of the pretraining text. It holds no chat format and no word in the dialect's meaning."""
        family = rng.choices(
            (self.facts, self.passages, self.arithmetic, self.logic, self.functions), weights=(1, 4, 3, 2, 2)
        )
        return family[0].text(rng)

    def wording(self, rng: random.Random) -> list[str]:
        """Return text that holds every word of the families and of their prompts. The tokenizer is made from it."""
        texts = [self.document(rng) for _ in range(3000)]
        for subject in TRAITS:
            texts += [_whole(self.facts.lesson(subject, rng)) for _ in range(500)]
        for language, spoken in LANGUAGES.items():
            texts += [spoken.instruction, spoken.passage, spoken.question]
            texts += [_whole(self.passages.lesson(language, rng)[1]) for _ in range(300)]
        for puzzle in self.logic.puzzles.values():
            texts += [puzzle.description, *(_whole(puzzle.lesson(rng)) for _ in range(500))]
        for sample in (self.arithmetic.lesson, self.functions.lesson):
            texts += [_whole(sample(rng)) for _ in range(1000)]
        return [*texts, INSTRUCTION, *PROMPTS, *(template.prompt for template in WITH_INPUT)]


def _whole(problem: Problem) -> str:
    return f"{problem.question}\nQ: {problem.question}\n{problem.reply}"

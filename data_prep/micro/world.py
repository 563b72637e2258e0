"""One invented world: all families, drawn from one seed, and its plain text for pretraining."""

import random

from data_prep.micro.arithmetic import Arithmetic
from data_prep.micro.facts import DEFINITION, TRAITS, Facts
from data_prep.micro.functions import INSTRUCTION, Functions
from data_prep.micro.logic import Logic
from data_prep.micro.passages import LANGUAGES, Passages
from data_prep.micro.split import Item
from data_prep.micro.words import Coiner
from data_prep.readers.templates import WITH_INPUT

# Wording of the chat format and of the prompts that no family holds.
PROMPTS = (
    "<|user|>\n<|assistant|>\n",
    "The answer is ",
    "Answer the following question.\n\nQuestion: x\nAnswer: x",
    *(DEFINITION.format(subject=subject.replace("_", " ")) for subject in TRAITS),
)


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
            (self.facts, self.passages, self.arithmetic, self.logic, self.functions), weights=(1, 4, 3, 2, 2)
        )
        return family[0].text(rng)

    def wording(self, rng: random.Random) -> list[str]:
        """Text with every word of the families and of the prompts around them: what the tokenizer is made from."""
        texts = [self.document(rng) for _ in range(3000)]
        for subject in TRAITS:
            texts += [_whole(self.facts.lesson(subject, rng)) for _ in range(500)]
        for language, spoken in LANGUAGES.items():
            texts += [spoken.instruction, spoken.passage, spoken.question]
            texts += [_whole(self.passages.lesson(language, rng)[1]) for _ in range(300)]
        for task in self.logic.tasks.values():
            texts += [task.description, *(_whole(task.lesson(rng)) for _ in range(500))]
        for sample in (self.arithmetic.lesson, self.functions.lesson):
            texts += [_whole(sample(rng)) for _ in range(1000)]
        return [*texts, INSTRUCTION, *PROMPTS, *(template.prompt for template in WITH_INPUT)]


def _whole(item: Item) -> str:
    return f"{item.question}\nQ: {item.question}\n{item.reply}"

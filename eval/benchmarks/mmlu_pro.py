"""MMLU-Pro: 14 categories with up to ten choices (docs/protocol.md, MMLU-Pro). Not among the paper's.

Prompt and scoring are those of lm-evaluation-harness's `leaderboard_mmlu_pro`, with a space in front of each letter, as
in MMLU. The five shots are the validation questions of the item's own category, as in the harness's `mmlu_pro`.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.benchmarks import parquet_rows
from data_prep.chat import user_prompt
from data_prep.files import BrokenRow, needed, strict, texts
from data_prep.sources import Files, single
from eval.benchmarks import Item, Prompting, Verdict
from eval.letters import best, listed

METRICS = ("accuracy",)


@dataclass(frozen=True)
class Question:
    id: int
    category: str
    question: str
    options: tuple[str, ...]
    answer: int  # index of the right option


@dataclass(frozen=True)
class MMLUPro:
    """Questions in file order; those of `validation` are the shots."""

    validation: tuple[Question, ...]
    test: tuple[Question, ...]
    label: str = ""

    def __len__(self) -> int:
        return len(self.test)


def load(files: Files) -> MMLUPro:
    """A Parquet file each for `validation` and `test`, as on the hub. Raises ValueError."""
    validation, test = (
        tuple(strict(parquet_rows(single(files, split)), _question)) for split in ("validation", "test")
    )
    return MMLUPro(validation, test)


def _question(row: dict[str, Any]) -> Question:
    category, question = texts(row, "category", "question")
    number, options, answer = needed(row, "question_id", int), needed(row, "options", list), row.get("answer_index")
    if not isinstance(answer, int) or not 0 <= answer < len(options):
        raise BrokenRow(f"question {number} has the answer_index {answer} of {len(options)} options")
    return Question(number, category, question, tuple(options), answer)


def prompt(shots: Sequence[Question], question: Question, prompting: Prompting) -> str:
    """The whole text given to the model, without `<s>`."""
    worked = "".join(f"{_ask(shot, prompting)}Answer: {prompting.letters[shot.answer]}\n\n" for shot in shots)
    content = worked + _ask(question, prompting)
    return user_prompt(content.removesuffix("\n"), "Answer:") if prompting.chat else f"{content}Answer:"


def _ask(question: Question, prompting: Prompting) -> str:
    return f"{question.question}\n{listed(prompting.letters, question.options)}"


def items(raw: MMLUPro, tokenizer: object, prompting: Prompting) -> list[Item]:
    """One item per test question; the task is the category.

    Raises ValueError for a category with fewer validation questions than shots.
    """
    pools = defaultdict(list)
    for row in raw.validation:
        pools[row.category].append(row)
    for category in dict.fromkeys(row.category for row in raw.test):
        if len(pools[category]) < prompting.shots:
            raise ValueError(
                f"MMLU-Pro needs {prompting.shots} validation questions in {category} as shots; the file has "
                f"{len(pools[category])}."
            )
    return [
        Item(
            id=str(row.id),
            task=row.category,
            prompt=prompt(pools[row.category][: prompting.shots], row, prompting),
            gold=prompting.letters[row.answer],
            extra={"choices": len(row.options)},
        )
        for row in raw.test
    ]


def parse(output: Mapping[str, float], item: Item) -> str:
    """The letter of the best of the item's own options; none if the prompt did not fit."""
    return best(output, item.extra["choices"])


def score(item: Item, predictions: Sequence[str]) -> Verdict:
    """100 if the letter is the right one."""
    return Verdict((100.0 * (predictions[0] == item.gold),))

"""ARC: grade-school science questions with 3 to 5 choices (docs/protocol.md, ARC-Challenge). Not among the paper's.

The prompt is that of lm-evaluation-harness's `arc_challenge` with the choices listed in it, because letters are scored
here, not the texts of the choices. Choices that the data numbers 1, 2, ... get letters, as in `arc_challenge_chat`.
"""

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
    id: str
    question: str
    choices: tuple[str, ...]
    answer: int  # index of the right choice


@dataclass(frozen=True)
class ARC:
    """Questions in file order; those of `train` are the shots."""

    train: tuple[Question, ...]
    test: tuple[Question, ...]
    label: str = ""

    def __len__(self) -> int:
        return len(self.test)


def load(files: Files) -> ARC:
    """A Parquet file each for `train` and `test`, as on the hub. Raises ValueError."""
    train, test = (tuple(strict(parquet_rows(single(files, split)), _question)) for split in ("train", "test"))
    return ARC(train, test)


def _question(row: dict[str, Any]) -> Question:
    id_, question, answer = texts(row, "id", "question", "answerKey")
    choices = needed(row, "choices", dict)
    labels, contents = needed(choices, "label", list), needed(choices, "text", list)
    if answer not in labels or len(labels) != len(contents):
        raise BrokenRow(f"question '{id_}' has the answer '{answer}', and {len(contents)} choices labelled {labels}")
    return Question(id_, question, tuple(contents), labels.index(answer))


def prompt(shots: Sequence[Question], question: Question, prompting: Prompting) -> str:
    """The whole text given to the model, without `<s>`."""
    worked = "".join(f"{_ask(shot, prompting)}Answer: {prompting.letters[shot.answer]}\n\n" for shot in shots)
    content = worked + _ask(question, prompting)
    return user_prompt(content.removesuffix("\n"), "Answer:") if prompting.chat else f"{content}Answer:"


def _ask(question: Question, prompting: Prompting) -> str:
    return f"Question: {question.question}\n{listed(prompting.letters, question.choices)}"


def items(raw: ARC, tokenizer: object, prompting: Prompting) -> list[Item]:
    """One item per test question; the task is the whole benchmark.

    Raises ValueError if there are fewer training questions than shots.
    """
    if len(raw.train) < prompting.shots:
        raise ValueError(f"ARC needs {prompting.shots} training questions as shots; the file has {len(raw.train)}.")
    return [
        Item(
            id=row.id,
            task="arc",
            prompt=prompt(raw.train[: prompting.shots], row, prompting),
            gold=prompting.letters[row.answer],
            extra={"choices": len(row.choices)},
        )
        for row in raw.test
    ]


def parse(output: Mapping[str, float], item: Item) -> str:
    """The letter of the best of the item's own choices; none if the prompt did not fit."""
    return best(output, item.extra["choices"])


def score(item: Item, predictions: Sequence[str]) -> Verdict:
    """100 if the letter is the right one."""
    return Verdict((100.0 * (predictions[0] == item.gold),))

"""MMLU: 57 subjects of multiple choice, answered by the logits of four letters (docs/protocol.md, MMLU)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.chat import user_prompt
from data_prep.files import BrokenRow, csv_rows, strict
from data_prep.sources import Files
from eval.benchmarks import Item, Prompting, Verdict
from eval.letters import best, listed

METRICS = ("accuracy",)
ANSWER_PREFIX = {"authors": "The answer is ", "tulu": "The answer is:"}


@dataclass(frozen=True)
class Question:
    question: str
    choices: tuple[str, str, str, str]
    answer: str  # A, B, C or D


@dataclass(frozen=True)
class MMLU:
    """Questions by subject (as in the file name, with underscores), subjects in alphabetical order."""

    dev: dict[str, tuple[Question, ...]]
    test: dict[str, tuple[Question, ...]]
    label: str = ""

    def __len__(self) -> int:
        return sum(map(len, self.test.values()))


def load(files: Files) -> MMLU:
    """`dev` and `test`: a file `<subject>_<split>.csv` per subject, without header.

    Raises FileNotFoundError for a subject without dev file, ValueError.
    """
    shots, asked = ({path.stem.removesuffix(f"_{split}"): path for path in files[split]} for split in ("dev", "test"))
    if missing := [subject for subject in asked if subject not in shots]:
        raise FileNotFoundError(
            f"{files['dev'][0].parent} has no {missing[0]}_dev.csv: every MMLU subject needs a dev and a test file."
        )
    dev, test = ({subject: _questions(paths[subject]) for subject in asked} for paths in (shots, asked))
    return MMLU(dev, test)


def _questions(path: Path) -> tuple[Question, ...]:
    return tuple(strict(csv_rows(path), _question))


def _question(row: list[str]) -> Question:
    if len(row) != 6 or row[5] not in ("A", "B", "C", "D"):
        raise BrokenRow(
            f"question, four choices and a letter A to D are needed, got {len(row)} cells ending {row[-1:]}"
        )
    question, a, b, c, d, answer = row
    return Question(question, (a, b, c, d), answer)


def prompt(subject: str, shots: Sequence[Question], question: Question, prompting: Prompting) -> str:
    """The whole text given to the model, without `<s>`."""
    head = f"The following are multiple choice questions (with answers) about  {subject.replace('_', ' ')}.\n\n"
    worked = "".join(f"{_ask(shot, prompting)} {shot.answer}\n\n" for shot in shots)
    content = head + worked + _ask(question, prompting)
    return user_prompt(content, ANSWER_PREFIX[prompting.variant]) if prompting.chat else content


def _ask(question: Question, prompting: Prompting) -> str:
    return f"{question.question}\n{listed(prompting.letters, question.choices)}Answer:"


def items(raw: MMLU, tokenizer: Any, prompting: Prompting) -> list[Item]:
    """One item per test question; the task is the subject.

    Raises ValueError for a subject with fewer dev questions than shots.
    """
    for subject, questions in raw.dev.items():
        if len(questions) < prompting.shots:
            raise ValueError(
                f"MMLU needs {prompting.shots} dev questions in {subject} as shots; the file has {len(questions)}."
            )
    return [
        Item(
            id=f"{subject}/{i}",
            task=subject,
            prompt=_fitting(subject, raw.dev[subject][: prompting.shots], question, tokenizer, prompting),
            gold=question.answer,
        )
        for subject, questions in raw.test.items()
        for i, question in enumerate(questions)
    ]


def _fitting(subject: str, shots: Sequence[Question], question: Question, tokenizer: Any, prompting: Prompting) -> str:
    """The prompt with as many of the first shots as fit, `<s>` not counted. Without shots it stays as long as it is."""
    text = prompt(subject, shots, question, prompting)
    limit = prompting.max_prompt_tokens
    if shots and limit and len(tokenizer.encode(text, add_special_tokens=False)) > limit:
        return _fitting(subject, shots[:-1], question, tokenizer, prompting)
    return text


def parse(output: Mapping[str, float], item: Item | None = None) -> str:
    """The letter with the largest softmax in float32, the first of equals; none if the prompt did not fit."""
    return best(output)


def score(item: Item, predictions: Sequence[str]) -> Verdict:
    """100 if the letter is the right one."""
    return Verdict((100.0 * (predictions[0] == item.gold),))


def golden(given: dict[str, Any], judge: Any) -> dict[str, Any]:
    """The result of a golden case (eval/golden.py)."""
    prediction, (score,) = judge(given["letter_logits"], gold=given["answer"])
    return {"prediction": prediction, "correct": score == 100.0}


def golden_prompt(given: dict[str, Any], prompting: Prompting) -> str:
    """The prompt of a golden case."""
    question, *shots = [Question(**row) for row in (given["item"], *given["shots"])]
    return prompt(given["subject"], shots, question, prompting)

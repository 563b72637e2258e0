"""MMLU: 57 subjects of multiple choice, answered by the next-token logits of four letters (docs/protocol.md, MMLU)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_prep.benchmarks import MMLU, MMLUQuestion
from data_prep.chat import user_prompt
from eval.benchmarks import Item, Settings, Verdict

LETTERS = ("A", "B", "C", "D")
ANSWER_PREFIX = {"authors": "The answer is ", "tulu": "The answer is:"}


def prompt(subject: str, shots: Sequence[MMLUQuestion], question: MMLUQuestion, settings: Settings) -> str:
    """The whole text given to the model, without `<s>`."""
    head = f"The following are multiple choice questions (with answers) about  {subject.replace('_', ' ')}.\n\n"
    content = head + "".join(f"{_ask(shot)} {shot.answer}\n\n" for shot in shots) + _ask(question)
    return user_prompt(content, ANSWER_PREFIX[settings.variant]) if settings.chat else content


def _ask(question: MMLUQuestion) -> str:
    choices = "".join(f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=True))
    return f"{question.question}{choices}\nAnswer:"


def items(raw: MMLU, tokenizer: Any, settings: Settings) -> list[Item]:
    """One item per test question; the task is the subject."""
    return [
        Item(
            id=f"{subject}/{i}",
            task=subject,
            prompt=_fitting(subject, raw.dev[subject][: settings.shots], question, tokenizer, settings),
            gold=question.answer,
        )
        for subject, questions in raw.test.items()
        for i, question in enumerate(questions)
    ]


def _fitting(
    subject: str, shots: Sequence[MMLUQuestion], question: MMLUQuestion, tokenizer: Any, settings: Settings
) -> str:
    """The prompt with as many of the first shots as fit; without shots nothing is left to drop."""
    text = prompt(subject, shots, question, settings)
    if shots and settings.max_prompt_tokens and len(tokenizer.encode(text)) > settings.max_prompt_tokens:
        return _fitting(subject, shots[:-1], question, tokenizer, settings)
    return text


def letter_ids(tokenizer: Any) -> dict[str, int]:
    """The token scored for each letter: the last one of ` A`, ` B`, ` C`, ` D`."""
    return {letter: tokenizer.encode(f" {letter}", add_special_tokens=False)[-1] for letter in LETTERS}


def parse(output: Mapping[str, float], item: Item | None = None) -> str:
    """The letter with the largest softmax in float32, the first of equals; none if the prompt did not fit."""
    if not output:
        return ""
    logits = np.array([output[letter] for letter in LETTERS], dtype=np.float32)  # (4,)
    probabilities = np.exp(logits - logits.max())  # not normalised: the order is that of the softmax
    return LETTERS[int(probabilities.argmax())]


def score(item: Item, predictions: Sequence[str]) -> Verdict:
    """100 if the letter is the right one."""
    return Verdict({"mmlu": 100.0 * (predictions[0] == item.gold)})

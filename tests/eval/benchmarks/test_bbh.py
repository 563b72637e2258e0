import pytest

from eval.benchmarks import Prompting, bbh
from eval.benchmarks.bbh import BBH, Example, SubTask

FILE = """canary
-----
Say it.

A note.

Q: One?
Options:
(A) x
A: Let's think. So the answer is (B). No.
So the answer is (A).

Q: Two?
A: Hm. So the answer is no.
"""


def test_worked_answers_are_reduced_to_their_last_result() -> None:
    assert bbh.direct_shots(FILE) == (
        "Say it.\n\nA note.\n\nQ: One?\nOptions:\n(A) x\nA: (A).\n\nQ: Two?\nA: no."
    )  # fmt: skip


@pytest.mark.parametrize("broken", ["c\nd\nQ: One?\nSo the answer is no.", "c\nd\nQ: One?\nA: no."])
def test_an_example_without_its_parts_is_refused(broken: str) -> None:
    with pytest.raises(ValueError, match="needs 'A:' and 'So the answer is'"):
        bbh.direct_shots(broken)


def test_items() -> None:
    raw = BBH({"navigate": SubTask((Example("Left? ", "Yes"), Example("Right?", "No")), "Shots.")})
    first, second = bbh.items(raw, None, Prompting(chat=True))
    assert (first.id, second.id, second.task, second.gold) == ("navigate/0", "navigate/1", "navigate", "No")
    assert first.prompt == "<|user|>\nShots.\n\nQ: Left? \n<|assistant|>\nA:"


@pytest.mark.parametrize(
    ("output", "prediction"),
    [
        ("the answer is a\nb.", "the answer is a\nb."),  # the dot matches no newline
        ("The answer is (A). The answer is (B).", "(A)"),
        ("The answer is 3.5.", "3"),
        (" (A)\n", "(A)"),
        ("the answer is no", "the answer is no"),
    ],
)
def test_the_prediction(output: str, prediction: str) -> None:
    assert bbh.parse(output) == prediction

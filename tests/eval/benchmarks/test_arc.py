from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from eval.benchmarks import Prompting, arc
from eval.benchmarks.arc import ARC

FIXTURE = Path(__file__).parents[2] / "fixtures/eval/arc_challenge"
LETTERS = tuple("ABCDE")


def load(root: Path) -> ARC:
    return arc.load({split: [root / f"{split}-00000-of-00001.parquet"] for split in ("train", "test")})


@pytest.fixture(scope="module")
def raw() -> ARC:
    return load(FIXTURE)


def test_answers_are_letters_or_numbers(raw: ARC) -> None:
    assert [(len(row.choices), row.answer) for row in raw.test] == [(4, 1), (4, 2), (3, 0), (5, 4)]
    items = arc.items(raw, None, Prompting(chat=False, letters=LETTERS))
    assert [item.gold for item in items] == ["B", "C", "A", "E"]


def test_the_prompts(raw: ARC) -> None:
    asked = "Question: Which of these melts first?\nA. iron\nB. stone\nC. ice\nD. glass\n"
    plain = arc.items(raw, None, Prompting(chat=False, letters=LETTERS))[1]
    assert plain.prompt == f"{asked}Answer:"
    chat = arc.items(raw, None, Prompting(chat=True, letters=LETTERS))[1]
    assert chat.prompt == f"<|user|>\n{asked}<|assistant|>\nAnswer:"
    shot = arc.items(raw, None, Prompting(chat=False, letters=LETTERS, shots=1))[1]
    assert shot.prompt.startswith("Question: What do plants need to grow?\nA. light\n")
    assert shot.prompt.endswith(f"D. paint\nAnswer: A\n\n{asked}Answer:")


def test_only_the_own_choices_can_be_the_answer(raw: ARC) -> None:
    three = arc.items(raw, None, Prompting(chat=False, letters=LETTERS))[2]
    assert arc.parse({"A": 0.0, "B": 1.0, "C": 0.5, "D": 9.0, "E": 9.0}, three) == "B"
    assert arc.score(three, ["A"]).scores == (100.0,)
    assert arc.score(three, [arc.parse({}, three)]).scores == (0.0,)


def test_shots_need_training_questions(raw: ARC) -> None:
    with pytest.raises(ValueError, match="needs 3 training questions as shots; the file has 2"):
        arc.items(raw, None, Prompting(chat=False, letters=LETTERS, shots=3))


def test_more_choices_than_letters_are_refused(raw: ARC) -> None:
    with pytest.raises(ValueError, match="has 5 choices, but its benchmark's yaml has 4 letters"):
        arc.items(replace(raw, test=raw.test[3:]), None, Prompting(chat=False, letters=LETTERS[:4]))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"answerKey": "Z"}, r"test-00000-of-00001\.parquet\[0\]: question 'q' has the answer 'Z', and 2 choices"),
        ({"choices": {"text": ["a"], "label": ["A", "B"]}}, r"and 1 choices labelled \['A', 'B'\]"),
        ({"question": None}, "field 'question' must be str"),
    ],
)
def test_broken_rows_are_named(tmp_path: Path, change: dict, text: str) -> None:
    row = {"id": "q", "question": "q?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}
    for split, rows in (("train", [row]), ("test", [row | change])):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{split}-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=text):
        load(tmp_path)

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from eval.benchmarks import Prompting, mmlu_pro
from eval.benchmarks.mmlu_pro import MMLUPro

FIXTURE = Path(__file__).parents[2] / "fixtures/eval/mmlu_pro"
LETTERS = tuple("ABCDEFGHIJ")


def load(root: Path) -> MMLUPro:
    return mmlu_pro.load({split: [root / f"data/{split}-00000-of-00001.parquet"] for split in ("validation", "test")})


@pytest.fixture(scope="module")
def raw() -> MMLUPro:
    return load(FIXTURE)


def test_items_have_up_to_ten_options_and_their_category_as_task(raw: MMLUPro) -> None:
    items = mmlu_pro.items(raw, None, Prompting(chat=False, letters=LETTERS, shots=5))
    assert [(item.task, item.gold, item.extra["choices"]) for item in items] == [
        ("math", "C", 10), ("math", "J", 10), ("law", "A", 3), ("law", "B", 4),
    ]  # fmt: skip


def test_the_prompts(raw: MMLUPro) -> None:
    asked = "What is a witness?\nA. One who saw it\nB. One who did it\nC. One who paid for it\n"
    plain = mmlu_pro.items(raw, None, Prompting(chat=False, letters=LETTERS))[2]
    assert plain.prompt == f"{asked}Answer:"
    chat = mmlu_pro.items(raw, None, Prompting(chat=True, letters=LETTERS))[2]
    assert chat.prompt == f"<|user|>\n{asked}<|assistant|>\nAnswer:"


def test_shots_are_the_first_validation_questions_of_the_category(raw: MMLUPro) -> None:
    item = mmlu_pro.items(raw, None, Prompting(chat=False, letters=LETTERS, shots=2))[2]
    first, second, own = item.prompt.split("\n\n")
    assert first == "Who signs a contract?\nA. Its parties\nB. A passer-by\nC. Nobody\nAnswer: A"
    assert second.startswith("What ends a lease?\n")
    assert own.startswith("What is a witness?\n")
    with pytest.raises(ValueError, match="needs 6 validation questions in math as shots; the file has 5"):
        mmlu_pro.items(raw, None, Prompting(chat=False, letters=LETTERS, shots=6))


def test_only_the_own_options_can_be_the_answer(raw: MMLUPro) -> None:
    item = mmlu_pro.items(raw, None, Prompting(chat=False, letters=LETTERS))[2]
    assert mmlu_pro.parse({letter: float(place) for place, letter in enumerate(LETTERS)}, item) == "C"
    assert mmlu_pro.score(item, ["A"]).scores == (100.0,)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"answer_index": 2},
            r"test-00000-of-00001\.parquet\[0\]: question 7 has the answer_index 2 of 2 options",
        ),
        ({"answer_index": -1}, "answer_index -1"),
        ({"options": None}, "field 'options' must be list"),
    ],
)
def test_broken_rows_are_named(tmp_path: Path, change: dict, text: str) -> None:
    row = {"question_id": 7, "category": "c", "question": "q?", "options": ["a", "b"], "answer_index": 0}
    (tmp_path / "data").mkdir()
    for split, rows in (("validation", [row]), ("test", [row | change])):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"data/{split}-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=text):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"<html>no</html>"])
def test_what_is_no_parquet_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/validation-00000-of-00001.parquet").write_bytes(content)
    with pytest.raises(ValueError, match="is not a complete Parquet file"):
        load(tmp_path)

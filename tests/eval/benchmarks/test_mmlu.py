import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.benchmarks import Item, Prompting, mmlu
from eval.benchmarks.mmlu import MMLU, Question
from eval.golden import byte_tokenizer

LETTERS = tuple("ABCD")
QUESTION = Question("Why?", ("a", "b", "c", "d"), "C")
RAW = MMLU({"high_school_x": (QUESTION,) * 5}, {"high_school_x": (QUESTION, QUESTION)})


def test_prompts_that_are_too_long_lose_their_last_shots() -> None:
    whole = Prompting(chat=True, letters=LETTERS)
    lengths = [len(mmlu.prompt("high_school_x", [QUESTION] * shots, QUESTION, whole)) for shots in range(6)]
    for limit, kept in ((lengths[5], 5), (lengths[5] - 1, 4), (lengths[2], 2), (lengths[0] - 1, 0)):
        prompting = Prompting(chat=True, letters=LETTERS, shots=5, max_prompt_tokens=limit)
        item = mmlu.items(RAW, byte_tokenizer(), prompting)[0]
        assert item.prompt.count("Why?") == kept + 1


def test_items() -> None:
    first, second = mmlu.items(RAW, byte_tokenizer(), Prompting(chat=False, letters=LETTERS))
    assert (first.id, second.id, first.task, first.gold) == (
        "high_school_x/0", "high_school_x/1", "high_school_x", "C",
    )  # fmt: skip
    assert first.prompt.endswith("about  high school x.\n\nWhy?\nA. a\nB. b\nC. c\nD. d\nAnswer:")


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=4, max_size=4))
def test_the_largest_logit_wins_and_the_first_of_equals(logits: list[float]) -> None:
    prediction = mmlu.parse(dict(zip("ABCD", logits, strict=True)))
    assert logits["ABCD".index(prediction)] == pytest.approx(max(logits), abs=1e-6)
    assert mmlu.parse(dict.fromkeys("ABCD", logits[0])) == "A"


def test_a_prompt_that_did_not_fit_is_wrong() -> None:
    item = Item("x", "x", "", "A")
    assert mmlu.score(item, [mmlu.parse({})]).scores == (0.0,)

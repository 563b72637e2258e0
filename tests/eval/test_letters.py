"""Letters that are scored instead of text that is generated."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval import letters
from eval.golden import byte_tokenizer

LOGITS = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=10)


@given(LOGITS, st.integers(1, 10))
def test_the_largest_logit_of_the_own_choices_wins_and_the_first_of_equals(values: list[float], choices: int) -> None:
    """ARC has items of 3 to 5 choices under five letters, MMLU-Pro of up to 10 under ten."""
    answer = letters.best(dict(zip("ABCDEFGHIJ", values, strict=False)), choices)
    own = values[:choices]
    place = "ABCDEFGHIJ".index(answer)
    assert place < choices
    assert own[place] == pytest.approx(max(own), abs=1e-6)
    assert letters.best(dict.fromkeys("ABCDEFGHIJ", values[0]), choices) == "A"


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=10))
def test_any_logits_give_a_letter(values: list[float]) -> None:
    """A model that has diverged gives nan; the evaluation goes on, and its score says the rest."""
    assert letters.best(dict(zip("ABCDEFGHIJ", values, strict=False))) in "ABCDEFGHIJ"


def test_without_logits_there_is_no_answer() -> None:
    assert letters.best({}) == letters.best({}, 4) == ""


def test_the_scored_token_is_the_last_of_space_and_letter() -> None:
    tokenizer = byte_tokenizer()
    assert letters.letter_ids(tokenizer, "ABJ") == {name: tokenizer.convert_tokens_to_ids(name) for name in "ABJ"}


def test_letters_that_share_a_token_are_refused() -> None:
    class Blind:
        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [7]

    with pytest.raises(ValueError, match="ends two of the letters A, B in the same token"):
        letters.letter_ids(Blind(), "AB")


def test_choices_are_listed_in_order() -> None:
    assert letters.listed("ABC", ["x", "y"]) == "A. x\nB. y\n"
    with pytest.raises(ValueError, match="has 3 choices, but its benchmark's yaml has 2 letters"):
        letters.listed("AB", ["x", "y", "z"])

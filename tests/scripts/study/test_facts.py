"""The facts of a study, and the measure of how much of them a model holds."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scripts.study.facts import bits_per_parameter, draw, stream
from scripts.study.settings import FactsSettings

SMALL = FactsSettings(count=50, first_token=7, keys=9, values=4)


@given(st.integers(0, 2**31), st.integers(1, 81), st.integers(2, 30))
def test_facts_are_distinct_and_within_their_tokens(seed: int, count: int, values: int) -> None:
    facts = draw(FactsSettings(count=count, first_token=7, keys=9, values=values), seed, vocabulary=40)
    assert facts.keys.shape == (count, 2)
    assert len({tuple(pair) for pair in facts.keys.tolist()}) == count
    assert all(7 <= token < 16 for pair in facts.keys.tolist() for token in pair)
    assert all(0 <= value < values for value in facts.values.tolist())


def test_a_seed_gives_the_same_facts_and_another_gives_others() -> None:
    first, again, other = (draw(SMALL, seed, 40) for seed in (3, 3, 4))
    assert torch.equal(first.keys, again.keys)
    assert torch.equal(first.values, again.values)
    assert not torch.equal(first.keys, other.keys)
    assert not torch.equal(first.values, other.values)


def test_streams_of_other_purposes_differ() -> None:
    draws = [torch.rand(4, generator=stream(seed, purpose)).tolist() for seed in (1, 2) for purpose in ("a", "b")]
    assert len({tuple(numbers) for numbers in draws}) == 4


@pytest.mark.parametrize(
    ("settings", "vocabulary", "sentence"),
    [
        (FactsSettings(count=82, first_token=7, keys=9, values=4), 40, r"count=82 .*keys=9 tokens make \(81\)"),
        (SMALL, 15, "needs the tokens 7 to 15, but the base model has 15"),
        (FactsSettings(count=5, first_token=7, keys=3, values=20), 26, "tokens 7 to 26, but the base model has 26"),
    ],
)
def test_facts_that_cannot_be_drawn_are_refused(settings: FactsSettings, vocabulary: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        draw(settings, 0, vocabulary)


def slow_bits(probabilities: list[float], values: int, parameters: int) -> float:
    """Fact by fact: what one saves when one is told a value by a coder who knows the model."""
    saved = sum(math.log2(values) - -math.log2(p) for p in probabilities)
    return saved / parameters if saved > 0 else 0.0


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=20), st.integers(2, 500), st.integers(1, 1000))
def test_bits_are_those_of_a_coder(probabilities: list[float], values: int, parameters: int) -> None:
    entropy = sum(-math.log(p) for p in probabilities) / len(probabilities)
    found = bits_per_parameter(entropy, len(probabilities), values, parameters)
    assert found == pytest.approx(slow_bits(probabilities, values, parameters), abs=1e-9)


def test_knowing_all_nothing_and_less_than_nothing() -> None:
    assert bits_per_parameter(0.0, 100, 64, 60) == pytest.approx(10)
    assert bits_per_parameter(math.log(64), 100, 64, 60) == pytest.approx(0)
    assert bits_per_parameter(9.0, 100, 64, 60) == 0

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.benchmarks import Item, Prompting, tydiqa
from eval.benchmarks.tydiqa import Question, TyDiQA
from eval.golden import byte_tokenizer


def question(language: str, number: int, context: str = "c") -> Question:
    return Question(f"{language}-{number}", language, context, f"q{number}?", (f"a{number}", "b"))


RAW = TyDiQA(
    train=tuple(question(language, i) for i in range(30) for language in ("russian", "arabic", "telugu")),
    dev=(question("russian", 0, "x" * 600), question("arabic", 1)),
    label="TyDi QA",
)


def test_one_shot_per_language_in_alphabetical_order_after_seed_42() -> None:
    draw = random.Random(42)
    pools = {name: [row for row in RAW.train if row.language == name] for name in ("arabic", "russian")}
    expected = {name: [draw.choice(pool)] for name, pool in pools.items()}
    assert tydiqa.draw_shots(RAW, 1) == expected  # telugu is not tested here


def test_items_and_their_cut_contexts() -> None:
    russian, arabic = tydiqa.items(RAW, byte_tokenizer(), Prompting(chat=False, shots=1, max_context_tokens=512))
    assert (russian.id, russian.task, russian.gold) == ("russian-0", "russian", ["a0", "b"])
    assert f"Отрывок: <s>{'x' * 511}\nВопрос: q0?\nОтвет:" in russian.prompt  # the cut context starts with <s>
    assert arabic.prompt.endswith("المقطع: c\nالسؤال: q1?\nالإجابة:")


def test_a_context_of_exactly_the_limit_is_not_cut() -> None:
    assert tydiqa.cut_context("x" * 511, byte_tokenizer(), 512) == "x" * 511
    assert tydiqa.cut_context("x" * 512, byte_tokenizer(), 512) == "<s>" + "x" * 511
    assert tydiqa.cut_context("x" * 512, byte_tokenizer(), None) == "x" * 512


def test_what_a_language_needs() -> None:
    unknown = TyDiQA((question("thai", 0),), (question("thai", 1),), "TyDi QA")
    with pytest.raises(ValueError, match="no instruction for the language 'thai'"):
        tydiqa.draw_shots(unknown, 1)
    untrained = TyDiQA((), (question("korean", 1),), "TyDi QA")
    with pytest.raises(ValueError, match=r"needs 1 training question\(s\) in korean"):
        tydiqa.draw_shots(untrained, 1)


def scores(output: str, *answers: str) -> tuple[float, float]:
    f1, em = tydiqa.score(Item("", "", "", list(answers)), [tydiqa.parse(output)]).scores
    return em, f1


@pytest.mark.parametrize(
    ("output", "answers", "em", "f1"),
    [
        ("The Cat", ["cat"], 100.0, 100.0),
        ("theatre", ["atre"], 0.0, 0.0),  # articles are whole words
        ("a-b", ["ab"], 100.0, 100.0),  # punctuation goes before articles
        ("", [""], 100.0, 0.0),
        ("a a b", ["b b c"], 0.0, 100 * 2 / 4),  # the articles go first
        ("x x y", ["x y y"], 0.0, 100 * 2 / 3),  # words count as often as they occur
        ("x", ["y", "x z", "x"], 100.0, 100.0),
        ("x", ["y", "x z"], 0.0, 100 * 2 / 3),
    ],
)
def test_squad_scores(output: str, answers: list[str], em: float, f1: float) -> None:
    assert scores(output, *answers) == pytest.approx((em, f1))


@given(st.text(max_size=30), st.text(max_size=30))
def test_scores_are_symmetric_percentages_and_an_exact_match_has_full_f1(first: str, second: str) -> None:
    assert scores(first, second) == scores(second, first)
    em, f1 = scores(first, second)
    assert em in (0.0, 100.0)
    assert 0.0 <= f1 <= 100.0 + 1e-9
    assert em == 0.0 or f1 in (0.0, 100.0)

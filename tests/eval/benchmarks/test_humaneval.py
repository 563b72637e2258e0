from itertools import combinations

import pytest

from eval import sandbox
from eval.benchmarks import Item, Prompting, humaneval
from eval.benchmarks.humaneval import HumanEval, Problem

PROBLEM = Problem("HumanEval/0", "def one():\n", "one", "    return 1\n", "def check(f):\n    assert f() == 1\n")


@pytest.mark.parametrize("n", range(1, 7))
def test_pass_at_k_is_the_share_of_draws_with_a_passing_sample(n: int) -> None:
    for c in range(n + 1):
        for k in range(1, n + 1):
            draws = list(combinations([i < c for i in range(n)], k))
            assert humaneval.pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_tulu_prompts_with_and_without_the_pack() -> None:
    prompting = Prompting(chat=True, variant="tulu")
    assert humaneval.prompt("def f():\n", "Write f.", prompting) == (
        "<|user|>\nWrite f.\n<|assistant|>\nHere is the function:\n\n```python\ndef f():\n"
    )
    assert humaneval.prompt("def f():\n", None, prompting) == (
        "<|user|>\nComplete the following python function.\n\n\ndef f():\n\n<|assistant|>\n"
        "Here is the completed function:\n\n\n"
    )
    assert humaneval.prompt("def f():\n", "Write f.", Prompting(chat=False, variant="tulu")) == "def f():\n"


def test_authors_do_not_read_the_pack() -> None:
    prompting = Prompting(chat=True)
    assert humaneval.prompt("def f():\n", "Write f.", prompting) == humaneval.prompt("def f():\n", None, prompting)


def test_the_score_is_the_share_of_samples_that_pass_and_notes_say_how_they_ended() -> None:
    (item,) = humaneval.items(HumanEval((PROBLEM,)), None, Prompting(chat=True))
    verdict = humaneval.score(item, ["    return 1\n", "    return 2\n", "    return 1", "    return ("])
    assert verdict.scores == (50.0,)
    assert [note == "passed" for note in verdict.notes] == [True, False, True, False]


@pytest.mark.parametrize(("status", "runs"), [("passed", 1), ("failed: no", 1), ("timed out", 3)])
def test_the_same_program_is_run_again_only_if_its_time_was_over(
    monkeypatch: pytest.MonkeyPatch, status: str, runs: int
) -> None:
    started: list[str] = []

    def check(text: str, allow_unprotected: bool) -> sandbox.Outcome:
        started.append(text)
        return sandbox.Outcome(status == "passed", status)

    monkeypatch.setattr(humaneval, "_known", {})
    monkeypatch.setattr(sandbox, "check", check)
    (item,) = humaneval.items(HumanEval((PROBLEM,)), None, Prompting(chat=True))
    verdicts = [humaneval.score(item, ["    return 1"]), humaneval.score(item, ["    return 1"] * 2)]
    assert len(started) == runs
    assert all(set(verdict.notes) == {status} for verdict in verdicts)


def test_nothing_is_stripped() -> None:
    assert humaneval.parse("  x \n", Item("", "", "", "")) == "  x \n"

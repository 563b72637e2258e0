import os

import pytest

from eval.predictions import Store
from scripts.inspect import main


def row(name: str, prediction: str, score: float, notes: list[str] | None = None) -> dict:
    return {
        "id": name,
        "task": "t",
        "prompt": f"What is <{name}>?",
        "outputs": [f"It is {prediction}"],
        "predictions": [prediction],
        "gold": "4",
        "scores": {"gsm8k": score},
        "notes": notes or [],
    }


@pytest.fixture
def two_runs(tmp_path):
    for run, answers in (("one", "453"), ("two", "457")):
        with Store(tmp_path / run / "eval" / "gsm8k-abc") as store:
            for name, prediction in zip("abc", answers, strict=True):
                store.add(row(name, prediction, 100.0 * (prediction == "4"), ["timed out"] if name == "b" else None))
    return tmp_path


def test_failures_are_shown_with_prompt_output_parsed_and_expected(two_runs, capsys):
    main([f"run={two_runs / 'one'}", "benchmark=gsm8k"])
    printed = capsys.readouterr().out
    for part in ("What is <b>?", "It is 5", "parsed, wrong", "timed out", "expected", "What is <c>?", "2 of 2 items"):
        assert part in printed
    assert "What is <a>?" not in printed


def test_count_limits_what_is_shown(two_runs, capsys):
    main([f"run={two_runs / 'one'}", "benchmark=gsm8k", "count=1"])
    printed = capsys.readouterr().out
    assert "What is <c>?" not in printed
    assert "1 of 2 items" in printed


def test_only_disagreements_of_two_runs(two_runs, capsys):
    main([f"run={two_runs / 'one'}", f"against={two_runs / 'two'}", "benchmark=gsm8k"])
    printed = capsys.readouterr().out
    assert "1 of 1 items" in printed
    assert printed.index("It is 3") < printed.index("It is 7")


@pytest.mark.parametrize("option", ["--html={}", "html={}"])
def test_a_page_holds_every_failure_with_its_text_escaped(two_runs, option, capsys):
    page = two_runs / "page.html"
    main([f"run={two_runs / 'one'}", "benchmark=gsm8k", option.format(page)])
    text = page.read_text()
    assert "What is &lt;b&gt;?" in text
    assert text.count("<article") == 2
    assert capsys.readouterr().out == ""


def test_the_latest_evaluation_is_read(two_runs, capsys):
    with Store(two_runs / "one" / "eval" / "gsm8k-new") as store:
        store.add(row("z", "9", 0.0))
    os.utime(store.path, (2e9, 2e9))
    main([f"run={two_runs / 'one'}", "benchmark=gsm8k"])
    assert "1 of 1 items" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["benchmark=gsm8k"], "'run=' is missing"),
        (["run=x"], "'benchmark=' is missing"),
        (["run=x", "benchmark=gsm"], "no benchmark 'gsm'.* Did you mean 'gsm8k'"),
        (["run=x", "benchmark=gsm8k", "colour=1"], "Unknown setting 'colour'"),
    ],
)
def test_what_it_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        main(arguments)


def test_a_run_without_evaluation_is_told_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"not been evaluated on bbh; run: python -m scripts.evaluate runs="):
        main([f"run={tmp_path}", "benchmark=bbh"])


def test_evaluations_of_other_items_cannot_be_compared(two_runs):
    with Store(two_runs / "three" / "eval" / "gsm8k-abc") as store:
        store.add(row("z", "9", 0.0))
    with pytest.raises(ValueError, match="have no item in common"):
        main([f"run={two_runs / 'one'}", f"against={two_runs / 'three'}", "benchmark=gsm8k"])

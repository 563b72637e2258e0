"""Our evaluation beside another's, on a tiny checkout of our own making."""

import json
from ast import literal_eval
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from eval import benchmarks
from scripts.original import checkout as original_checkout
from scripts.original import child, compare, ours, report, sets, theirs
from scripts.original.compared import Compared, compared, first_difference
from tests.scripts.original import fake


@pytest.fixture
def cross_check(tmp_path, monkeypatch):
    """`cross_check(outputs, ...)`: the comparison of a run that gave these outputs."""
    fake.install_evaluate(tmp_path / "evaluate", monkeypatch)

    def check(outputs, chat=True, **asked) -> Compared:
        monkeypatch.setattr(theirs, "CONFIGS", fake.configs(tmp_path / "configs"))
        folder = fake.checkout(tmp_path / "checkout", **asked)
        trial = fake.trial(tmp_path, outputs, chat)
        trial.check()
        (answered,) = theirs.answered([trial], tmp_path / "data", folder, None, tmp_path / "work")
        return compared(trial, answered)

    return check


@pytest.mark.parametrize("chat", [True, False])
def test_two_codes_that_agree(cross_check, chat):
    found = cross_check(["It is 0", "It is 2", "It is 5", ""], chat)
    assert (found.items, found.asked, found.same_prompt, found.answered, found.same_score) == (4, 4, 4, 4, 4)
    assert found.ours == found.theirs == found.said == {"gsm8k": 50.0}
    assert found.differences == []


def test_a_score_that_differs_is_counted_and_shown(cross_check):
    found = cross_check(["It is 0", "It is 2.", "It is 4"])  # theirs takes the last word with its period
    assert (found.same_prompt, found.answered, found.same_score) == (3, 3, 2)
    assert (found.ours, found.theirs) == ({"gsm8k": 100.0}, {"gsm8k": pytest.approx(200 / 3)})
    assert found.differences == ["`1`: 100.00 here, 0.00 there"]


def test_a_prompt_that_differs_is_counted_shown_and_not_scored(cross_check):
    ask = fake.ASK + ".replace('1 plus', 'one plus')"
    found = cross_check(["It is 0", "It is 2", "It is 4"], ask=ask)
    assert (found.items, found.asked, found.same_prompt, found.answered, found.same_score) == (3, 3, 2, 2, 2)
    assert found.said is None  # their script's own score is over other items
    (difference,) = found.differences
    assert difference.startswith("prompt of `1`: ") and "1 plus 1" in difference and "one plus" in difference


def test_items_without_an_answer_are_asked_but_not_scored(cross_check):
    found = cross_check(["It is 0", None, "It is 4"])
    assert (found.same_prompt, found.answered, found.same_score, found.said) == (3, 2, 2, None)


def test_an_answer_counts_for_every_item_with_its_prompt(tmp_path):
    trial = fake.trial(tmp_path, ["It is 0", None])
    first, second = trial.items.values()
    trial.items[second.id] = replace(second, prompt=first.prompt)
    assert trial.answers() == {first.prompt: [["0", ["It is 0"]], ["1", ["It is 0"]]]}


def test_their_stops_cut_the_outputs(cross_check):
    found = cross_check(["It is 0\nIt is 7", "It is 3\nIt is 2"], stop='["\\n"]')
    assert (found.theirs, found.ours) == ({"gsm8k": 50.0}, {"gsm8k": 50.0})
    assert found.same_score == 0  # in chat format ours has no stop


def test_a_script_that_stops_says_its_last_words(cross_check):
    with pytest.raises(ValueError, match=r"script stopped \(KeyError: 'nothing'\); all that it printed is in .*log"):
        cross_check(["It is 0"], ask='row["nothing"]')


def test_other_data_than_the_runs_are_refused(tmp_path):
    trial = fake.trial(tmp_path, ["It is 0"])
    trial.metrics["prompts"] = "0" * 64
    with pytest.raises(ValueError, match="answers other items than this command's data and settings give"):
        trial.check()


def test_scores_of_another_mean_are_refused(tmp_path):
    trial = fake.trial(tmp_path, ["It is 0"])
    trial.metrics["average"] = "tasks"
    with pytest.raises(ValueError, match=r"another mean, .*; run python -m scripts\.evaluate runs=\[.*run\] with them"):
        trial.check()


def given_trial(answers, programs=None):
    return child.Trial(answers, programs or {})


def test_equal_prompts_are_answered_in_order_and_strangers_not_at_all():
    trial = given_trial({"p": [["a", ["1"]], ["b", None]]})
    assert [trial.take("p"), trial.take("q"), trial.take("p"), trial.take("p")] == [["1"], None, None, None]
    assert trial.asked == [["p", "a"], ["q", None], ["p", "b"], ["p", None]]


def test_letters_are_chosen_by_their_largest_logit():
    answers = {"p": [["a", [{"A": 1.0, "B": 3.0, "C": 2.0}]]], "q": [["b", [{"A": 5.0, "B": 5.0, "C": 2.0}]]]}
    trial = given_trial(answers)
    predict = child.letters(lambda: trial)
    chosen, probabilities = predict(None, None, ["p", "q", "unknown"], [7, 8, 9], batch_size=1)
    assert chosen == [1, 0, 0]
    assert [sum(row) for row in probabilities] == pytest.approx([1.0, 1.0, 1.0])


EXECUTOR = """
import multiprocessing

def create_tempdir(): raise AssertionError
def swallow_io(): raise AssertionError
def time_limit(seconds): raise AssertionError
def reliability_guard(): raise AssertionError

def check(program):
    def target():
        reliability_guard()
        with create_tempdir(), swallow_io(), time_limit(3.0):
            try:
                exec(program, {})
                result.append("passed")
            except BaseException as error:
                result.append(f"failed: {error}")
    result = multiprocessing.Manager().list()
    process = multiprocessing.Process(target=target)
    process.start()
    process.join(timeout=4.0)
    assert not process.is_alive()
    return list(result)
"""


def test_no_program_is_executed(tmp_path):
    fake_executor = ModuleType("executor")
    exec(EXECUTOR, fake_executor.__dict__)
    trace = tmp_path / "trace"
    program = f"open({str(trace)!r}, 'w')"
    trial = given_trial({}, {program: "passed", "1/0": "failed: ZeroDivisionError"})
    child.disarm(fake_executor, lambda: trial)
    assert fake_executor.check(program) == ["passed"]
    assert fake_executor.check("1/0") == ["failed: failed: ZeroDivisionError"]
    assert fake_executor.check("other") == ["failed: None"]
    assert trial.unknown == ["other"] and not trace.exists()


def test_an_executor_of_another_make_is_refused():
    with pytest.raises(AttributeError):
        child.disarm(ModuleType("executor"), lambda: given_trial({}))


def test_answers_of_squads_layout_become_columns():
    reference = {"id": "x", "answers": [{"text": "a", "answer_start": 1}, {"text": "b", "answer_start": 2}]}
    assert child.as_columns(reference) == {"id": "x", "answers": {"text": ["a", "b"], "answer_start": [1, 2]}}
    assert child.as_columns("plain") == "plain"


TEXT = st.text("ab\n.", max_size=12)


@given(TEXT, st.lists(st.sampled_from(["\n", "a", "ba", ".."]), max_size=3))
def test_both_sides_cut_alike(text, stops):
    assert child.cut(text, stops) == benchmarks.cut(text, stops)


@given(TEXT, TEXT, TEXT)
def test_the_first_difference_is_where_texts_part(shared, one, other):
    shown = first_difference(shared + one, shared + other)
    here, there = (literal_eval(part) for part in shown.removesuffix(" there").split(" here, "))
    assert here in shared + one and there in shared + other
    assert (here == there) == (one == other or shared + one == shared + other)


def test_rows_of_csv_and_samples_of_an_item_become_percent(tmp_path):
    (tmp_path / "b.csv").write_text("x,right\n1,True\n2,False\n", encoding="utf-8")
    (tmp_path / "a.csv").write_text("x,right\n1,False\n2,False\n", encoding="utf-8")
    (tmp_path / "asked.json").write_text(
        json.dumps({"asked": [["p", "i"], ["q", "j"]], "unknown": []}), encoding="utf-8"
    )
    (tmp_path / "metrics.json").write_text('{"mean": {"acc": 0.25}}', encoding="utf-8")
    items = {"file": "*.csv", "columns": {"score": "right"}, "percent": 100}
    script = theirs.Script("m", {}, [], items, {"score": "mean.acc"})
    found = theirs.Answered(script, tmp_path, samples=2)
    assert found.scores() == {"i": {"score": 0.0}, "j": {"score": 50.0}}
    assert found.overall() == {"score": 25.0}


def test_a_training_set_is_compared_example_by_example(tmp_path, monkeypatch):
    (tmp_path / "raw.jsonl").write_text(
        "".join(json.dumps({"inputs": f"q{n}", "targets": f"r{n}"}) + "\n" for n in range(3))
    )
    folder = tmp_path / "configs" / "crosscheck" / "dataset"
    folder.mkdir(parents=True)
    (folder / "flan_v2.yaml").write_text("name: flan_v2\nfiles: {rows: lines.jsonl}\n", encoding="utf-8")
    monkeypatch.setattr(sets, "CONFIGS", tmp_path / "configs")
    files, checkout = {"rows": [tmp_path / "raw.jsonl"]}, fake.checkout(tmp_path / "checkout")
    dataset = OmegaConf.create({"reader": {"_target_": "data_prep.readers.flan.read_flan_v2"}})
    made = sets._theirs("flan_v2", files, checkout, tmp_path / "work")
    found = sets._compared("flan_v2", sets._ours(dataset, files), made)
    assert (found.ours, found.theirs, found.same) == (3, 3, 2)
    assert found.differences == ["`flan_v2_1`: 'flan_v2_1\\nq1\\n\\nr1' here, 'flan_v2_1\\nq1\\n\\nr1!' there"]


def test_the_page_has_the_counts_and_the_first_differences(cross_check):
    row = cross_check(["It is 0", "It is 2."])
    page = report.report(
        "micro", "generated", [row, row], [sets.ComparedSet("cot", 5, 5, 4, ["`cot_3`: x"])], ["super"]
    )
    assert "| Sums | 2 | 4 | 4 | 4 | 4 | 2 |" in page
    assert "| run | 2 of 2 | 1 of 2 | 100.00 | 50.00 | 50.00 | 0.00 (authors) |" in page
    assert "run, the first of 1 differences:\n\n- `1`: 100.00 here, 0.00 there" in page
    assert "| cot | 5 | 5 | 4 |" in page and "Raw files not on this machine: super." in page
    assert original_checkout.COMMIT in page


@pytest.fixture
def their_checkout(tmp_path, monkeypatch):
    fake.install_evaluate(tmp_path / "evaluate", monkeypatch)
    folder = fake.checkout(tmp_path / "checkout")
    monkeypatch.setattr(original_checkout, "COMMIT", fake.committed(folder))
    return folder


def test_a_checkout_at_the_commit_is_taken(their_checkout, tmp_path):
    assert original_checkout.checked(str(their_checkout), str(tmp_path)) == their_checkout


def test_what_is_missing_is_named_with_its_remedy(their_checkout, tmp_path, monkeypatch):
    def refused(kind, words, path=str(their_checkout), metrics=None):
        with pytest.raises(kind, match=words):
            original_checkout.checked(path, metrics)

    refused(FileNotFoundError, "open_instruct names no checkout: git clone https://", None)
    refused(FileNotFoundError, "is no checkout of open-instruct: git clone", str(tmp_path))
    refused(FileNotFoundError, "metric_scripts=.*none is no folder", metrics=str(tmp_path / "none"))
    with monkeypatch.context() as patch:
        patch.setattr(original_checkout, "find_spec", lambda name: None)
        refused(ModuleNotFoundError, r"pip install -r requirements/crosscheck\.txt")
    with monkeypatch.context() as patch:
        patch.setattr(original_checkout, "COMMIT", "f" * 40)
        refused(ValueError, r"is at commit \w{9}, but fffffffff is compared: git clone")
    (their_checkout / "eval" / "utils.py").write_text("# edited\n", encoding="utf-8")
    refused(ValueError, r"eval/utils.py in open_instruct=.* was edited: git -C")
    (their_checkout / ".git").rename(their_checkout / "git")
    refused(ValueError, "is no git checkout, so that its version is not known")


def test_a_run_without_predictions_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("{}", encoding="utf-8")
    (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(
        FileNotFoundError, match=r"holds no predictions for a benchmark of open-instruct's; run: python"
    ):
        compare.evaluations([str(tmp_path)])
    fake.trial(tmp_path, ["It is 0"])
    (tmp_path / "eval").symlink_to(tmp_path / "run" / "eval")
    assert compare.evaluations([str(tmp_path)]) == {"gsm8k": {tmp_path: tmp_path / "eval" / "gsm8k-0"}}


def test_every_yaml_names_a_benchmark_or_a_set_of_ours_and_all_its_columns():
    for path in (theirs.CONFIGS / "crosscheck" / "benchmark").glob("*.yaml"):
        columns = set(OmegaConf.load(path.parents[2] / "benchmark" / path.name).columns)
        given = OmegaConf.load(path)
        assert set(given["items"].columns) == set(given.overall) == columns
    for path in (theirs.CONFIGS / "crosscheck" / "dataset").glob("*.yaml"):
        assert set(OmegaConf.load(path).files) <= set(
            OmegaConf.load(path.parents[2] / "dataset" / path.name).source.files
        )


def test_our_side_is_the_variant_whose_original_it_is():
    assert ours.VARIANT in benchmarks.VARIANTS
    assert Path(theirs.CHILD).is_file()

"""What the benchmarks share: settings, stops, the comparison, limits and averages."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from eval import benchmarks
from eval.benchmarks import Item

CONFIGS = Path(__file__).parents[3] / "configs" / "benchmark"


def config(name: str) -> dict:
    loaded = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"))
    assert isinstance(loaded, dict)
    return loaded


def items(*sizes: int) -> list[Item]:
    return [Item(f"{task}/{i}", str(task), "", "") for task, size in enumerate(sizes) for i in range(size)]


@pytest.mark.parametrize(
    ("name", "chat", "variant", "stops"),
    [
        ("mmlu", True, "authors", ()),
        ("bbh", True, "authors", ()),
        ("bbh", True, "tulu", ("\n\n",)),
        ("bbh", False, "authors", ("\n\n",)),
        ("gsm8k", True, "tulu", ()),
        ("gsm8k", False, "authors", ("\n",)),
        ("tydiqa", True, "authors", ()),
        ("tydiqa", False, "tulu", ("\n",)),
        ("humaneval", True, "authors", ("\nclass", "\ndef", "\n#", "\nif", "\nprint")),
        ("humaneval", True, "tulu", ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```")),
        ("humaneval", False, "tulu", ("\nclass", "\ndef", "\n#", "\nif", "\nprint")),
    ],
)
def test_stops(name: str, chat: bool, variant: str, stops: tuple[str, ...]) -> None:
    assert benchmarks.settings(config(name), variant, chat).stops == stops


@pytest.mark.parametrize("name", benchmarks.NAMES)
def test_every_benchmark_has_a_config_and_a_module_of_one_shape(name: str) -> None:
    assert config(name)["name"] == name
    assert config(name)["average"] in ("items", "tasks")
    assert all(hasattr(benchmarks.module(name), part) for part in ("prompt", "items", "parse", "score"))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no benchmark 'gsm8'; there are mmlu, bbh, .* Did you mean 'gsm8k'"):
        benchmarks.module("gsm8")
    with pytest.raises(ValueError, match="variant is 'olmo'; choose one of authors, tulu"):
        benchmarks.settings(config("mmlu"), "olmo", True)


def test_the_text_is_cut_before_the_stop_that_comes_first() -> None:
    assert benchmarks.cut("a\nif b\ndef c", ["\ndef", "\nif"]) == "a"
    assert benchmarks.cut(" a \n", ["\ndef"]) == " a \n"
    assert benchmarks.cut("\n\nanswer", ["\n\n"]) == ""
    assert benchmarks.cut("a", []) == "a"


@pytest.mark.parametrize(
    ("prediction", "gold", "equal"),
    [
        ("-10", "10", True),
        ("5.0", "5", False),
        ("5.0", "50", True),
        ("3.50", "3.5", False),
        ("A .", "a", False),  # the space stays
        ("(A).", "A", True),
        ("“A”", "A", False),  # only ASCII punctuation goes
        ("ÉCOLE", "école", True),
        ("} ) ]", "] ] >", True),
        ("", "...", True),
    ],
)
def test_comparison(prediction: str, gold: str, equal: bool) -> None:
    assert benchmarks.matches(prediction, gold) is equal


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(1, 60))
def test_a_limit_spreads_over_the_tasks_as_evenly_as_they_allow(sizes: list[int], limit: int) -> None:
    every = items(*sizes)
    chosen = benchmarks.spread(every, limit)
    counts = Counter(item.task for item in chosen)
    assert len(chosen) == min(limit, len(every))
    assert len({item.id for item in chosen}) == len(chosen)
    assert chosen == [item for item in every if item in chosen]  # in order
    most = max(counts.values())
    assert all(counts[str(task)] >= min(size, most - 1) for task, size in enumerate(sizes))
    assert benchmarks.spread(every, limit) == chosen


def test_a_limit_below_the_number_of_tasks_and_none() -> None:
    assert [item.id for item in benchmarks.spread(items(3, 3, 3, 3), 2)] == ["0/0", "2/0"]
    assert [item.id for item in benchmarks.spread(items(6), 3)] == ["0/0", "0/2", "0/4"]
    assert len(benchmarks.spread(items(3, 3), None)) == 6
    with pytest.raises(ValueError, match="limit=0"):
        benchmarks.spread(items(3), 0)


ROWS = [
    {"task": "a", "scores": {"x": 100.0, "y": 0.0}},
    {"task": "a", "scores": {"x": 0.0, "y": 0.0}},
    {"task": "a", "scores": {"x": 0.0, "y": 0.0}},
    {"task": "b", "scores": {"x": 100.0, "y": 50.0}},
]


def test_the_mean_over_items_and_over_tasks() -> None:
    assert benchmarks.aggregate(ROWS, "items") == {"x": 50.0, "y": 12.5}
    assert benchmarks.aggregate(ROWS, "tasks") == pytest.approx({"x": (100 / 3 + 100) / 2, "y": 25.0})


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 100)), min_size=1))
def test_averages_stay_within_the_scores_and_agree_for_one_task(pairs: list[tuple[str, float]]) -> None:
    rows = [{"task": task, "scores": {"x": score}} for task, score in pairs]
    for average in ("items", "tasks"):
        mean = benchmarks.aggregate(rows, average)["x"]
        assert min(score for _, score in pairs) - 1e-9 <= mean <= max(score for _, score in pairs) + 1e-9
    single = [{**row, "task": "a"} for row in rows]
    assert benchmarks.aggregate(single, "tasks") == benchmarks.aggregate(single, "items")


def test_what_averages_refuse() -> None:
    with pytest.raises(ValueError, match="no predictions"):
        benchmarks.aggregate([], "items")
    with pytest.raises(ValueError, match="average is 'languages'"):
        benchmarks.aggregate(ROWS, "languages")

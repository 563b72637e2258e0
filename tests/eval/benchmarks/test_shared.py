"""What the benchmarks share: their yamls, stops, the comparison, limits and averages."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from data_prep.sources import Files, find_files
from eval import benchmarks
from eval.benchmarks import Item
from eval.golden import byte_tokenizer

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "configs" / "benchmark"
FIXTURES = ROOT / "tests" / "fixtures"


def config(name: str) -> dict:
    evaluation = OmegaConf.load(CONFIGS.parent / "evaluation" / "default.yaml")  # the yaml may refer to it
    whole = OmegaConf.create({"evaluation": evaluation, "benchmark": OmegaConf.load(CONFIGS / f"{name}.yaml")})
    loaded = OmegaConf.to_container(whole.benchmark, resolve=True)
    assert isinstance(loaded, dict)
    return loaded


def fixture(name: str) -> Files:
    source = config(name)["source"]
    return find_files(OmegaConf.create(source), FIXTURES / source["folder"])


def items(*sizes: int) -> list[Item]:
    return [Item(f"{task}/{i}", str(task), "", "") for task, size in enumerate(sizes) for i in range(size)]


@pytest.mark.parametrize(
    ("name", "chat", "variant", "stops"),
    [
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
    assert benchmarks.prompting(config(name), variant, chat).stops == stops


def test_the_stops_of_letters_are_none() -> None:
    assert benchmarks.prompting(config("mmlu"), "tulu", True).stops == ()


@pytest.mark.parametrize("name", benchmarks.names())
def test_every_yaml_is_whole_and_its_fixture_loads(name: str) -> None:
    """The fixture has the layout of the original files; its items have the parts that an evaluation needs."""
    found = config(name)
    assert found["name"] == name
    raw = benchmarks.load(found, fixture(name))
    assert raw.label == found["title"]
    module = benchmarks.module(found)
    for chat in (True, False):
        chosen = module.items(raw, byte_tokenizer(), benchmarks.prompting(found, "authors", chat))
        assert len(chosen) == len(raw) == len({item.id for item in chosen})
        assert all(item.prompt.startswith("<|user|>\n") == chat for item in chosen)
        outputs = dict.fromkeys(found["letters"], 0.0) if found.get("letters") else "an answer"
        verdict = module.score(chosen[0], [module.parse(outputs, chosen[0])])
        assert len(verdict.scores) == len(found["columns"]) == len(module.METRICS)


def test_another_number_of_items_than_published_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    found = config("gsm8k")
    benchmarks.load(found, fixture("gsm8k"))
    assert "GSM8K has 4 items here, 1319 as published" in caplog.text
    caplog.clear()
    benchmarks.load(found | {"published": {"items": 4}}, fixture("gsm8k"))
    assert caplog.text == ""


def test_a_second_yaml_may_use_the_same_module() -> None:
    """A new benchmark whose prompts and scoring exist is one yaml."""
    other = config("gsm8k") | {"name": "gsm_hard", "title": "GSM hard", "columns": {"gsm_hard": "EM"}}
    benchmarks.check(other)
    assert benchmarks.load(other, fixture("gsm8k")).label == "GSM hard"
    assert benchmarks.columns([config("gsm8k"), other]) == {"gsm8k": "gsm8k", "gsm_hard": "gsm_hard"}


def test_columns_belong_to_the_benchmark_whose_yaml_lists_them() -> None:
    names = ("mmlu", "tydiqa", "arc_challenge")
    assert benchmarks.columns(map(config, names)) == {
        "mmlu": "mmlu", "tydiqa_f1": "tydiqa", "tydiqa_em": "tydiqa", "arc_challenge": "arc_challenge",
    }  # fmt: skip
    twice = config("bbh") | {"columns": {"mmlu": ""}}
    with pytest.raises(ValueError, match="'mmlu' and 'bbh' both have the column 'mmlu'"):
        benchmarks.columns([config("mmlu"), twice])


NO_TEXT = {"max_new_tokens": None, "stops": None}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"version": None}, r"gsm8k\.yaml lacks version"),
        ({"title": None, "source": None}, "lacks title, source"),
        ({"version": "1"}, "version is '1'; use a whole number from 1"),
        ({"shotz": 3}, "has the key 'shotz', which nothing reads. Did you mean 'shots'"),
        ({"average": "languages"}, "average is 'languages'; choose one of items, tasks"),
        ({"columns": {"a": "", "b": ""}}, r"columns are a, b, but .*gsm8k\.py gives 1 score"),
        ({"module": "gsm8"}, r"names the module 'gsm8', but there is no eval/benchmarks/gsm8\.py"),
        ({"max_new_tokens": None}, "needs letters, or max_new_tokens and stops"),
        ({"stops": None}, "needs letters, or max_new_tokens and stops"),
        ({"letters": ["A", "A"], **NO_TEXT}, "at least two different ones"),
        ({"letters": ["A", "B"]}, "has letters, so nothing reads its max_new_tokens"),
        ({"shots": -1}, r"benchmark\.gsm8k\.shots=-1 is refused: use a whole number from 0"),
        ({"shots": 1.5}, r"benchmark\.gsm8k\.shots=1\.5 is refused"),
        ({"shots": True}, r"benchmark\.gsm8k\.shots=True is refused"),
        ({"shots": "8"}, r"benchmark\.gsm8k\.shots=8 is refused"),
        ({"max_new_tokens": -1}, r"benchmark\.gsm8k\.max_new_tokens=-1 is refused: use a whole number from 1"),
        ({"samples": 0}, r"benchmark\.gsm8k\.samples=0 is refused: use a whole number from 1"),
        ({"max_context_tokens": 0}, r"benchmark\.gsm8k\.max_context_tokens=0 is refused: use a whole number from 1"),
        ({"temperature": -0.1}, r"benchmark\.gsm8k\.temperature=-0\.1 is refused: use a number from 0"),
        ({"temperature": "hot"}, r"benchmark\.gsm8k\.temperature=hot is refused"),
        ({"allow_unprotected": "no"}, r"benchmark\.gsm8k\.allow_unprotected=no is refused: use true or false"),
        ({"top_p": 0}, r"benchmark\.gsm8k\.top_p=0 is refused: use a number above 0, at most 1"),
        (
            {"samples": 20, "temperature": 0},
            r"benchmark\.gsm8k\.samples=20 with benchmark\.gsm8k\.temperature=0 would be one answer 20 times",
        ),
        ({"samples": 2}, r"benchmark\.gsm8k\.samples=2 with benchmark\.gsm8k\.temperature=0\.0"),
    ],
)
def test_a_yaml_with_which_a_table_would_fail_is_refused(change: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        benchmarks.check(config("gsm8k") | change)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no benchmark 'gsm8'; there are arc_challenge, bbh, .* Did you mean 'gsm8k'"):
        benchmarks.check_name("gsm8")
    with pytest.raises(ValueError, match="variant is 'olmo'; choose one of authors, tulu"):
        benchmarks.prompting(config("mmlu"), "olmo", True)


def test_only_what_is_needed_is_imported() -> None:
    """A one-sentence error should not take the seconds that torch, transformers or vLLM take to import."""
    modules = [f"eval.benchmarks.{path.stem}" for path in Path(benchmarks.__file__).parent.glob("*.py")]
    heavy = "{'torch', 'transformers', 'vllm', 'peft', 'pandas', 'pyarrow', 'datasets'}"
    code = f"import sys, eval.session, eval.letters, {', '.join(modules)}; print({heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


GENERATED = [name for name in benchmarks.names() if not {"letters", "programs"} & config(name).keys()]


@given(st.sampled_from(GENERATED), st.text())
def test_any_output_of_a_model_is_judged(name: str, output: str) -> None:
    """What a model writes is data: no text of it may end an evaluation."""
    found = config(name)
    module = benchmarks.module(found)
    item = Item("0", "t", "", ["a 1"] if found["columns"].keys() >= {"tydiqa_em"} else "1")
    prediction = benchmarks.predict(found, item, output, benchmarks.prompting(found, "tulu", True).stops)
    assert all(0.0 <= score <= 100.0 for score in module.score(item, [prediction]).scores)


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


def test_no_other_code_spells_the_name_of_a_benchmark() -> None:
    """What differs between benchmarks is in their yamls and modules, so that a new one needs no other code."""
    owner = {f"eval/benchmarks/{config(name)['module']}.py": name for name in benchmarks.names()}
    spelled = []
    for path in [*(ROOT / "scripts").rglob("*.py"), *(ROOT / "eval").rglob("*.py")]:
        text, own = path.read_text(encoding="utf-8").lower(), owner.get(str(path.relative_to(ROOT)), "")
        spelled += [(path.name, name) for name in benchmarks.names() if name in text and name not in own]
    assert spelled == []

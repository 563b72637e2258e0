import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from data_prep.sources import Files, find_files
from eval import benchmarks, sandbox
from eval.benchmarks import Item, Verdict
from eval.benchmarks import gsm8k as gsm8k_module
from eval.benchmarks import humaneval as humaneval_module
from eval.benchmarks import mmlu as mmlu_module
from eval.benchmarks.bbh import BBH, Example, SubTask
from eval.benchmarks.gsm8k import GSM8K
from eval.benchmarks.gsm8k import Question as Sum
from eval.benchmarks.tydiqa import Question, TyDiQA
from eval.engines import Decoding, Request
from eval.engines.hf import HfEngine
from eval.golden import byte_tokenizer
from eval.predictions import read
from eval.session import Benchmark, Conditions, Job, evaluate

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "benchmark"
FIXTURES = ROOT / "tests" / "fixtures"
LETTERED = mmlu_module.Question("Why?", ("a", "b", "c", "d"), "D")
TYDI = [Question(f"english-{i}", "english", f"c{i}", "q?", (f"a{i}",)) for i in range(4)]
PROBLEM = humaneval_module.Problem(
    "H/0", "def one():\n", "one", "    return 1\n", "def check(f):\n    assert f() == 1\n"
)
RAW: dict[str, Any] = {
    "mmlu": mmlu_module.MMLU(
        {"x": (LETTERED,), "y": ()},
        {"x": (LETTERED,) * 3, "y": (mmlu_module.Question("Who?", ("a", "b", "c", "d"), "A"),)},
        "MMLU",
    ),
    "bbh": BBH({"t": SubTask(tuple(Example(f"i{i}", "yes") for i in range(4)), "Do.")}, "BBH"),
    "gsm8k": GSM8K(tuple(Sum(f"q{i}", str(i)) for i in range(6)), "GSM8K"),
    "tydiqa": TyDiQA(tuple(TYDI), tuple(TYDI), "TyDi QA"),
    "humaneval": humaneval_module.HumanEval((PROBLEM,), "HumanEval"),
}


def config(name: str) -> dict[str, Any]:
    loaded: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"))
    changes = {"max_new_tokens": 16, "samples": 1, "temperature": 0.0, "top_p": 1.0, "allow_unprotected": False}
    return loaded | {key: value for key, value in changes.items() if key in loaded}


BENCHMARKS = {name: Benchmark(config(name), RAW[name]) for name in RAW}
CONDITIONS = Conditions(model="m", engine={"name": "fake"})


class Kill(Exception):
    pass


def no_engine() -> Any:
    raise AssertionError("started")


class FakeEngine:
    """Answers each prompt by a function of it; dies after so many answers."""

    tokenizer = byte_tokenizer()

    def __init__(self, lives: int = 10**9) -> None:
        self.lives = lives
        self.asked: list[str] = []
        self.decodings: list[Decoding] = []

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> Iterator[tuple[int, list[str]]]:
        self.decodings.append(decoding)
        for index in reversed(range(len(requests))):
            prompt = self._live(requests[index])
            digits = [character for character in prompt if character.isdigit()]
            yield index, [f"So {digits[-1] if digits else ''}"] * decoding.samples

    def letter_logits(
        self, requests: Sequence[Request], letter_ids: Mapping[str, int]
    ) -> Iterator[tuple[int, dict[str, float]]]:
        for index, request in enumerate(requests):
            self._live(request)
            yield index, {letter: float(place) for place, letter in enumerate(letter_ids)}

    def _live(self, request: Request) -> str:
        if len(self.asked) == self.lives:
            raise Kill
        self.asked.append(request.prompt)
        return request.prompt


def run(tmp_path: Path, engine: FakeEngine, conditions: Conditions = CONDITIONS, **job: Any) -> list[Path]:
    options: dict[str, Any] = {"adapter": None, "chat": True, "benchmarks": ("mmlu", "gsm8k")} | job
    return evaluate([Job(tmp_path, **options)], BENCHMARKS, conditions, FakeEngine.tokenizer, lambda: engine)


@pytest.fixture
def adapters(tmp_path: Path) -> list[Path]:
    """Two folders that differ in their weights."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_model.safetensors").write_text(name)
    return [tmp_path / "a", tmp_path / "b"]


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def test_scores_counts_and_predictions(tmp_path: Path) -> None:
    mmlu, gsm8k = run(tmp_path, FakeEngine())
    assert mmlu.parent == tmp_path / "eval"
    assert mmlu.name.startswith("mmlu-")
    assert metrics(mmlu)["scores"] == {"mmlu": 75.0}  # over items, not subjects
    assert metrics(mmlu)["tasks"] == {"x": {"items": 3, "mmlu": 100.0}, "y": {"items": 1, "mmlu": 0.0}}
    assert metrics(gsm8k)["scores"] == {"gsm8k": 100.0}
    assert metrics(gsm8k)["items"] == 6
    row = read(gsm8k / "predictions.jsonl")["3"]
    assert (row["outputs"], row["predictions"], row["gold"]) == (["So 3"], ["3"], "3")
    assert row["prompt"].endswith("Question: q3\n<|assistant|>\nAnswer:")


def test_adapters_are_answered_together_and_kept_apart(tmp_path: Path, adapters: list[Path]) -> None:
    """One request stream for all jobs of a benchmark; each row and each count goes to its own run."""
    engine = FakeEngine()
    jobs = [Job(adapter, adapter, True, ("gsm8k",)) for adapter in adapters]
    jobs.append(Job(tmp_path / "base", None, True, ("gsm8k",)))
    folders = evaluate(jobs, BENCHMARKS, CONDITIONS, engine.tokenizer, lambda: engine)
    assert len(engine.decodings) == 1
    assert [folder.parent.parent.name for folder in folders] == ["a", "b", "base"]
    for folder in folders:
        assert metrics(folder)["scores"] == {"gsm8k": 100.0}
        assert len(read(folder / "predictions.jsonl")) == json.loads((folder / "timing.json").read_text())["items"] == 6


def test_a_rerun_starts_no_engine_and_writes_nothing(tmp_path: Path) -> None:
    before = {file: file.stat().st_mtime_ns for folder in run(tmp_path, FakeEngine()) for file in folder.iterdir()}
    job = Job(tmp_path, None, True, ("mmlu", "gsm8k"))
    folders = evaluate([job], BENCHMARKS, CONDITIONS, FakeEngine.tokenizer, no_engine)
    assert {file: file.stat().st_mtime_ns for folder in folders for file in folder.iterdir()} == before


@pytest.mark.parametrize("lives", range(10))
def test_an_interrupted_evaluation_goes_on_where_it_was(tmp_path: Path, lives: int) -> None:
    whole = run(tmp_path / "whole", FakeEngine())
    first, second = FakeEngine(lives), FakeEngine()
    with pytest.raises(Kill):
        run(tmp_path / "cut", first)
    resumed = run(tmp_path / "cut", second)
    assert sorted(first.asked + second.asked) == sorted(
        row["prompt"] for folder in whole for row in read(folder / "predictions.jsonl").values()
    )
    for one, other in zip(whole, resumed, strict=True):
        assert (one / "metrics.json").read_bytes() == (other / "metrics.json").read_bytes()
        assert read(one / "predictions.jsonl") == read(other / "predictions.jsonl")


def test_damaged_predictions_are_made_again(tmp_path: Path) -> None:
    _, gsm8k = run(tmp_path, FakeEngine())
    wanted = (gsm8k / "metrics.json").read_bytes()
    path = gsm8k / "predictions.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"So 3"', b'"So 4"'))
    engine = FakeEngine()
    run(tmp_path, engine)
    assert len(engine.asked) == 1
    assert read(path)["3"]["outputs"] == ["So 3"]
    assert (gsm8k / "metrics.json").read_bytes() == wanted


def test_what_determines_the_predictions_makes_another_key(tmp_path: Path, adapters: list[Path]) -> None:
    variations: list[dict[str, Any]] = [
        {},
        {"chat": False},
        {"adapter": adapters[0]},
        {"adapter": adapters[1]},
        {"conditions": Conditions("other", {"name": "fake"})},
        {"conditions": Conditions("m", {"name": "fake", "dtype": "bfloat16"})},
        {"conditions": Conditions("m", {"name": "fake"}, variant="tulu")},
        {"conditions": Conditions("m", {"name": "fake"}, limit=3)},
    ]
    folders = [run(tmp_path, FakeEngine(), benchmarks=("mmlu",), **variation)[0] for variation in variations]
    assert len(set(folders)) == len(variations)
    assert run(tmp_path, FakeEngine(), benchmarks=("mmlu",), seed=1)[0] == folders[0]  # greedy: no seed


def test_results_keep_the_name_that_another_form_of_the_weights_gave_them(tmp_path: Path, adapters: list[Path]) -> None:
    trained, exported = adapters

    def asked(adapter: Path, *weights: Path) -> tuple[Path, int]:
        engine = FakeEngine()
        return run(tmp_path, engine, benchmarks=("gsm8k",), adapter=adapter, weights=weights)[0], len(engine.asked)

    older, _ = asked(exported)
    assert asked(trained, trained, exported) == (older, 0)
    newer, _ = asked(trained, trained)  # where the export is no more, the trained weights name new results
    assert newer != older
    assert asked(exported, trained, exported) == (newer, 0)
    assert [json.loads((folder / "timing.json").read_text())["served"] for folder in (older, newer)] == ["b", "a"]


def test_new_results_are_named_by_the_trained_weights(tmp_path: Path, adapters: list[Path]) -> None:
    trained, exported = adapters
    folders = [
        run(tmp_path / name, FakeEngine(), benchmarks=("gsm8k",), adapter=adapter, weights=tuple(adapters))[0].name
        for name, adapter in (("native", trained), ("exported", exported))
    ]
    assert folders[0] == folders[1]
    assert folders[0] == run(tmp_path, FakeEngine(), benchmarks=("gsm8k",), adapter=trained)[0].name


def test_a_higher_version_of_a_benchmark_makes_another_key(tmp_path: Path) -> None:
    raised = Benchmark(config("gsm8k") | {"version": 2}, RAW["gsm8k"])
    job = Job(tmp_path, None, True, ("gsm8k",))
    first, second = (
        evaluate([job], {"gsm8k": chosen}, CONDITIONS, FakeEngine.tokenizer, FakeEngine)[0]
        for chosen in (BENCHMARKS["gsm8k"], raised)
    )
    assert (metrics(first)["version"], metrics(second)["version"]) == (1, 2)
    assert first != second


def scored(tmp_path: Path, benchmark: Benchmark, engine: Any = no_engine) -> Path:
    job = Job(tmp_path, None, True, (benchmark.name,))
    return evaluate([job], {benchmark.name: benchmark}, CONDITIONS, FakeEngine.tokenizer, engine)[0]


def changed(name: str, **settings: Any) -> Benchmark:
    return replace(BENCHMARKS[name], config=BENCHMARKS[name].config | settings)


def judged_by(test: str) -> Benchmark:
    """HumanEval with one problem, whose answer is a comment behind the solution."""
    problem = replace(PROBLEM, prompt="def one():\n    return 1\n# ", test=f"def check(f):\n    assert f() == {test}\n")
    return replace(BENCHMARKS["humaneval"], raw=humaneval_module.HumanEval((problem,), "HumanEval"))


def test_a_corrected_test_judges_stored_answers_again(tmp_path: Path) -> None:
    """Prompts are the same, so the folder is; the engine is not needed."""
    folder = scored(tmp_path, judged_by("2"), FakeEngine)
    assert metrics(folder)["scores"] == {"humaneval": 0.0}
    outputs = read(folder / "predictions.jsonl")["H/0"]["outputs"]
    assert scored(tmp_path, judged_by("1")) == folder
    assert metrics(folder)["scores"] == {"humaneval": 100.0}
    row = read(folder / "predictions.jsonl")["H/0"]
    assert (row["outputs"], row["scores"], row["notes"]) == (outputs, {"humaneval": 100.0}, ["passed"])
    written = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert scored(tmp_path, judged_by("1")) == folder
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == written


def test_another_mean_or_column_scores_stored_answers_anew(tmp_path: Path) -> None:
    folder = scored(tmp_path, BENCHMARKS["mmlu"], FakeEngine)
    assert metrics(folder)["scores"] == {"mmlu": 75.0}
    assert scored(tmp_path, changed("mmlu", average="tasks")) == folder
    assert (metrics(folder)["scores"], metrics(folder)["average"]) == ({"mmlu": 50.0}, "tasks")
    assert scored(tmp_path, changed("mmlu", columns={"renamed": ""})) == folder
    assert metrics(folder)["scores"] == {"renamed": 75.0}
    assert read(folder / "predictions.jsonl")["y/0"]["scores"] == {"renamed": 0.0}


def test_scores_that_do_not_say_what_made_them_stand_under_the_same_mean(tmp_path: Path) -> None:
    """As published before `scoring` was written."""
    folder = scored(tmp_path, BENCHMARKS["mmlu"], FakeEngine)
    older = {key: value for key, value in metrics(folder).items() if key != "scoring"}
    (folder / "metrics.json").write_text(json.dumps(older))
    assert metrics(scored(tmp_path, BENCHMARKS["mmlu"])) == older
    assert metrics(scored(tmp_path, changed("mmlu", average="tasks")))["scores"] == {"mmlu": 50.0}


def test_what_a_stopped_evaluation_scored_is_judged_again(tmp_path: Path) -> None:
    with pytest.raises(Kill):
        scored(tmp_path, changed("gsm8k", columns={"old": ""}), lambda: FakeEngine(3))
    engine = FakeEngine()
    folder = scored(tmp_path, BENCHMARKS["gsm8k"], lambda: engine)
    assert (len(engine.asked), metrics(folder)["scores"]) == (3, {"gsm8k": 100.0})


def test_a_stopped_evaluation_that_goes_on_judges_no_answer_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, judged = gsm8k_module.score, []

    def score(item: Item, predictions: Sequence[str]) -> Verdict:
        judged.append(item.id)
        return real(item, predictions)

    monkeypatch.setattr(gsm8k_module, "score", score)
    with pytest.raises(Kill):
        scored(tmp_path, BENCHMARKS["gsm8k"], lambda: FakeEngine(3))
    folder = scored(tmp_path, BENCHMARKS["gsm8k"], FakeEngine)
    assert sorted(judged) == list("012345")
    assert {file.name for file in folder.iterdir()} == {"predictions.jsonl", "metrics.json", "timing.json"}


def test_what_scoring_needs_must_be_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = gsm8k_module.items
    monkeypatch.setattr(gsm8k_module, "items", lambda *given: [replace(i, extra={"x": {1}}) for i in real(*given)])
    with pytest.raises(ValueError, match="GSM8K: `extra` of its items must be JSON"):
        scored(tmp_path, BENCHMARKS["gsm8k"])
    assert not list(tmp_path.iterdir())


def test_leave_to_run_unprotected_programs_scores_nothing_anew(tmp_path: Path) -> None:
    folder = scored(tmp_path, BENCHMARKS["humaneval"], FakeEngine)
    written = (folder / "metrics.json").stat().st_mtime_ns
    scored(tmp_path, changed("humaneval", allow_unprotected=True))
    assert (folder / "metrics.json").stat().st_mtime_ns == written


def test_programs_are_judged_again_only_where_they_are_shut_in(tmp_path: Path, unprotected: None) -> None:
    folder = scored(tmp_path, changed("humaneval", allow_unprotected=True), FakeEngine)
    with pytest.raises(PermissionError, match=r"benchmark\.humaneval\.allow_unprotected=true"):
        scored(tmp_path, changed("humaneval", columns={"renamed": ""}))
    assert metrics(folder)["scores"].keys() == {"humaneval"}


def test_two_items_of_one_id_are_refused_before_the_engine(tmp_path: Path) -> None:
    twice = replace(BENCHMARKS["humaneval"], raw=humaneval_module.HumanEval((PROBLEM, PROBLEM), "HumanEval"))
    with pytest.raises(ValueError, match=r"HumanEval has the id 'H/0' 2 times; keep one of these rows\."):
        scored(tmp_path, twice)
    assert not list(tmp_path.iterdir())


class Unjudged(Exception):
    pass


@pytest.mark.parametrize(("lives", "error", "kept"), [(6, Unjudged, "0123"), (3, Kill, "3")])
def test_an_answer_that_cannot_be_judged_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lives: int, error: type[Exception], kept: str
) -> None:
    """What stopped the engine is raised; where nothing did, the first error of judging."""
    real = gsm8k_module.score

    def score(item: Item, predictions: Sequence[str]) -> Verdict:
        time.sleep(0.2)  # the engine is done before the first answer is judged
        if item.id in ("4", "5"):
            raise Unjudged(item.id)
        return real(item, predictions)

    monkeypatch.setattr(gsm8k_module, "score", score)
    with pytest.raises(error):
        scored(tmp_path, BENCHMARKS["gsm8k"], lambda: FakeEngine(lives))
    (path,) = tmp_path.glob("eval/*/predictions.jsonl")
    assert sorted(read(path)) == list(kept)
    assert not path.with_name("metrics.json").exists()


def test_a_benchmark_that_was_not_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no benchmark 'gsm8'; there are mmlu, .* Did you mean 'gsm8k'"):
        run(tmp_path, FakeEngine(), benchmarks=("gsm8",))


def test_sampling_takes_the_seed_of_the_run(tmp_path: Path) -> None:
    sampled = Benchmark(
        BENCHMARKS["humaneval"].config | {"samples": 3, "temperature": 0.1, "top_p": 0.9}, RAW["humaneval"]
    )
    engine = FakeEngine()
    jobs = [Job(tmp_path, None, True, ("humaneval",), seed) for seed in (0, 7)]
    folders = evaluate(jobs, {"humaneval": sampled}, CONDITIONS, engine.tokenizer, lambda: engine)
    assert [(d.seed, d.samples, d.temperature, d.top_p) for d in engine.decodings] == [
        (0, 3, 0.1, 0.9),
        (7, 3, 0.1, 0.9),
    ]
    assert folders[0] != folders[1]
    assert len(read(folders[0] / "predictions.jsonl")["H/0"]["notes"]) == 3


@pytest.fixture
def unprotected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "protection", lambda: sandbox.Protection("none", "nothing here can shut it in"))


def humaneval(tmp_path: Path, engine: FakeEngine, allow_unprotected: bool = False) -> list[Path]:
    config = BENCHMARKS["humaneval"].config | {"allow_unprotected": allow_unprotected}
    chosen = BENCHMARKS | {"humaneval": Benchmark(config, RAW["humaneval"])}
    job = Job(tmp_path, None, True, ("gsm8k", "humaneval"))
    return evaluate([job], chosen, CONDITIONS, engine.tokenizer, lambda: engine)


def test_without_a_sandbox_nothing_starts(tmp_path: Path, unprotected: None) -> None:
    engine = FakeEngine()
    with pytest.raises(PermissionError, match=r"can shut it in; .*benchmark\.humaneval\.allow_unprotected=true"):
        humaneval(tmp_path, engine)
    assert not engine.asked
    assert not list(tmp_path.iterdir())
    assert len(run(tmp_path, engine, benchmarks=("gsm8k",))) == 1  # what runs no program goes on


def test_unprotected_programs_run_when_told_so(tmp_path: Path, unprotected: None) -> None:
    *_, folder = humaneval(tmp_path, FakeEngine(), allow_unprotected=True)
    (note,) = read(folder / "predictions.jsonl")["H/0"]["notes"]
    assert note.startswith("failed: ")  # "So 1" is no Python, which only running it can tell
    assert humaneval(tmp_path, FakeEngine())[-1] == folder  # finished: neither a sandbox nor another key is needed


def test_the_active_protection_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="eval.session"):
        humaneval(tmp_path, FakeEngine())
    assert caplog.messages == [str(sandbox.protection())]


def test_the_limit_counts_items_per_benchmark(tmp_path: Path) -> None:
    mmlu, gsm8k = run(tmp_path, FakeEngine(), Conditions("m", {}, limit=2))
    assert set(metrics(mmlu)["tasks"]) == {"x", "y"}
    assert metrics(gsm8k)["items"] == 2


def fixture(found: dict[str, Any]) -> Files:
    return find_files(OmegaConf.create(found["source"]), FIXTURES / found["source"]["folder"])


def test_all_benchmarks_of_a_base_model_and_an_adapter_with_transformers(
    tmp_path: Path, tiny_model: Path, tiny_lora: Path
) -> None:
    """Every yaml, on its fixture in the layout of the original files."""
    loaded = {name: config(name) for name in benchmarks.names()}
    chosen = {name: Benchmark(found, benchmarks.load(found, fixture(found))) for name, found in loaded.items()}
    engine = HfEngine(tiny_model, [tiny_lora], dtype="float32", max_model_len=4000, batch_size=4)
    jobs = [
        Job(tmp_path / "base", None, False, tuple(chosen)),
        Job(tmp_path / "tuned", tiny_lora, True, tuple(chosen)),
    ]
    folders = evaluate(jobs, chosen, CONDITIONS, engine.tokenizer, lambda: engine)
    assert len(folders) == 2 * len(chosen)
    for folder, name in zip(folders, [*chosen, *chosen], strict=True):
        found = metrics(folder)
        assert list(found["scores"]) == list(loaded[name]["columns"])
        assert all(0.0 <= score <= 100.0 for score in found["scores"].values())
        assert found["items"] == len(read(folder / "predictions.jsonl")) == len(chosen[name].raw)
        assert (found["label"], found["version"]) == (loaded[name]["title"], 1)

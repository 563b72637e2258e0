import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from data_prep.benchmarks import (
    BBH,
    GSM8K,
    MMLU,
    BBHExample,
    BBHTask,
    GSM8KQuestion,
    HumanEval,
    HumanEvalProblem,
    MMLUQuestion,
    TyDiQA,
    TyDiQuestion,
)
from eval import sandbox
from eval.engines import Decoding, Request
from eval.engines.hf import HfEngine
from eval.golden import byte_tokenizer
from eval.predictions import read
from eval.session import Benchmark, Job, Protocol, evaluate

CONFIGS = Path(__file__).parents[2] / "configs" / "benchmark"
QUESTION = MMLUQuestion("Why?", ("a", "b", "c", "d"), "D")
TYDI = [TyDiQuestion(f"english-{i}", "english", f"c{i}", "q?", (f"a{i}",)) for i in range(4)]
RAW: dict[str, Any] = {
    "mmlu": MMLU(
        {"x": (QUESTION,), "y": ()}, {"x": (QUESTION,) * 3, "y": (MMLUQuestion("Who?", ("a", "b", "c", "d"), "A"),)}
    ),
    "bbh": BBH({"t": BBHTask(tuple(BBHExample(f"i{i}", "yes") for i in range(4)), "c\n-\nDo.\n")}),
    "gsm8k": GSM8K(tuple(GSM8KQuestion(f"q{i}", f"#### {i}") for i in range(6))),
    "tydiqa": TyDiQA(tuple(TYDI), tuple(TYDI), "TyDi QA"),
    "humaneval": HumanEval(
        (HumanEvalProblem("H/0", "def one():\n", "one", "    return 1\n", "def check(f):\n    assert f() == 1\n"),)
    ),
}


def benchmark(name: str) -> Benchmark:
    config: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"))
    decoding = {"max_new_tokens": 16, "samples": 1, "temperature": 0.0, "top_p": 1.0}
    return Benchmark(config | decoding | {"allow_unprotected": False}, RAW[name])


BENCHMARKS = {name: benchmark(name) for name in RAW}
PROTOCOL = Protocol(model="m", engine={"name": "fake"})


class Kill(Exception):
    pass


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


def run(tmp_path: Path, engine: FakeEngine, protocol: Protocol = PROTOCOL, **job: Any) -> list[Path]:
    options: dict[str, Any] = {"adapter": None, "chat": True, "benchmarks": ("mmlu", "gsm8k")} | job
    return evaluate([Job(tmp_path, **options)], BENCHMARKS, protocol, FakeEngine.tokenizer, lambda: engine)


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
    folders = evaluate(jobs, BENCHMARKS, PROTOCOL, engine.tokenizer, lambda: engine)
    assert len(engine.decodings) == 1
    assert [folder.parent.parent.name for folder in folders] == ["a", "b", "base"]
    for folder in folders:
        assert metrics(folder)["scores"] == {"gsm8k": 100.0}
        assert len(read(folder / "predictions.jsonl")) == json.loads((folder / "timing.json").read_text())["items"] == 6


def test_a_rerun_starts_no_engine_and_writes_nothing(tmp_path: Path) -> None:
    before = {file: file.stat().st_mtime_ns for folder in run(tmp_path, FakeEngine()) for file in folder.iterdir()}

    def none() -> FakeEngine:
        raise AssertionError("started")

    job = Job(tmp_path, None, True, ("mmlu", "gsm8k"))
    folders = evaluate([job], BENCHMARKS, PROTOCOL, FakeEngine.tokenizer, none)
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
        {"protocol": Protocol("other", {"name": "fake"})},
        {"protocol": Protocol("m", {"name": "fake", "dtype": "bfloat16"})},
        {"protocol": Protocol("m", {"name": "fake"}, variant="tulu")},
        {"protocol": Protocol("m", {"name": "fake"}, limit=3)},
    ]
    folders = [run(tmp_path, FakeEngine(), benchmarks=("mmlu",), **variation)[0] for variation in variations]
    assert len(set(folders)) == len(variations)
    assert run(tmp_path, FakeEngine(), benchmarks=("mmlu",), seed=1)[0] == folders[0]  # greedy: no seed


def test_sampling_takes_the_seed_of_the_run(tmp_path: Path) -> None:
    sampled = Benchmark(
        BENCHMARKS["humaneval"].config | {"samples": 3, "temperature": 0.1, "top_p": 0.9}, RAW["humaneval"]
    )
    engine = FakeEngine()
    jobs = [Job(tmp_path, None, True, ("humaneval",), seed) for seed in (0, 7)]
    folders = evaluate(jobs, {"humaneval": sampled}, PROTOCOL, engine.tokenizer, lambda: engine)
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
    return evaluate([job], chosen, PROTOCOL, engine.tokenizer, lambda: engine)


def test_without_a_sandbox_nothing_starts(tmp_path: Path, unprotected: None) -> None:
    engine = FakeEngine()
    with pytest.raises(PermissionError, match=r"nothing here can shut it in; .*humaneval\.allow_unprotected=true"):
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
    mmlu, gsm8k = run(tmp_path, FakeEngine(), Protocol("m", {}, limit=2))
    assert set(metrics(mmlu)["tasks"]) == {"x", "y"}
    assert metrics(gsm8k)["items"] == 2


def test_all_benchmarks_of_a_base_model_and_an_adapter_with_transformers(
    tmp_path: Path, tiny_model: Path, tiny_lora: Path
) -> None:
    engine = HfEngine(tiny_model, [tiny_lora], dtype="float32", max_model_len=3000, batch_size=4)
    jobs = [
        Job(tmp_path / "base", None, False, tuple(BENCHMARKS)),
        Job(tmp_path / "tuned", tiny_lora, True, tuple(BENCHMARKS)),
    ]
    folders = evaluate(jobs, BENCHMARKS, PROTOCOL, engine.tokenizer, lambda: engine)
    assert len(folders) == 10
    for folder, name in zip(folders, [*BENCHMARKS, *BENCHMARKS], strict=True):
        found = metrics(folder)
        assert list(found["scores"]) == BENCHMARKS[name].config["columns"]
        assert all(0.0 <= score <= 100.0 for score in found["scores"].values())
        assert found["items"] == len(read(folder / "predictions.jsonl"))

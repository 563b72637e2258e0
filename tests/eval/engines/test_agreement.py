"""vLLM and transformers on the real SmolLM2 and real prompts of every benchmark, in float32."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from eval import benchmarks
from eval.benchmarks import Item, mmlu
from eval.engines import Decoding, Engine
from eval.engines.hf import HfEngine
from eval.engines.vllm import VllmEngine
from scripts.cell import base_model
from scripts.cell.evaluation import load_benchmark
from scripts.config import compose
from tests.asked import asked
from tests.ties import gap_at_parting

pytest.importorskip("vllm")

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
ITEMS = 40  # of each of the five benchmarks
DECODING = Decoding(max_new_tokens=16)  # no stops: a text ends by its length or by the end-of-sequence token
TIE = 1e-3  # of logits, whose float32 rounding over 30 layers is some 1e-4


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if not DATA.is_dir():
        pytest.skip(f"the benchmarks' original files are not in {DATA}")
    return compose(["profile=smol", f"data={DATA}", f"cache_dir={tmp_path_factory.mktemp('cache')}"])


def mixed(cfg: Any, tokenizer: Any) -> dict[str, list[Item]]:
    """The items of each benchmark in the chat format, evenly over its tasks."""
    found = {}
    for name in benchmarks.NAMES:
        benchmark = load_benchmark(cfg, name)
        settings = benchmarks.settings(benchmark.config, "authors", chat=True)
        found[name] = benchmarks.spread(benchmarks.module(name).items(benchmark.raw, tokenizer, settings), ITEMS)
    return found


def answers(engine: Engine, items: Mapping[str, list[Item]]) -> Iterator[tuple[str, str, Any]]:
    """(benchmark, prompt, text or the letters' logits), in order."""
    for name, chosen in items.items():
        prompts = [item.prompt for item in chosen]
        if name == "mmlu":
            outputs: dict[int, Any] = dict(engine.letter_logits(asked(prompts), mmlu.letter_ids(engine.tokenizer)))
        else:
            outputs = {index: texts[0] for index, texts in engine.generate(asked(prompts), DECODING)}
        yield from ((name, prompt, outputs[index]) for index, prompt in enumerate(prompts))


def gap(reference: HfEngine, prompt: str, one: Any, other: Any) -> float:
    """How far the two candidates are apart, by their logits, where two different answers part."""
    if isinstance(one, str):
        return gap_at_parting(reference.model, reference.tokenizer, prompt, one, other)
    return one[mmlu.parse(one)] - one[mmlu.parse(other)]


@pytest.mark.slow
def test_greedy_answers_agree_and_differ_only_at_ties(cfg: Any) -> None:
    smol = base_model.checkpoint(cfg.model, cfg.cache_dir)
    engine = VllmEngine(smol, dtype="float32", cpu_kv_cache_gib=1)
    reference = HfEngine(smol, dtype="float32", batch_size=4)
    items = mixed(cfg, reference.tokenizer)
    pairs = list(zip(answers(reference, items), answers(engine, items), strict=True))
    assert len(pairs) == ITEMS * len(benchmarks.NAMES)
    parted = [
        (name, prompt, one, other)
        for (name, prompt, one), (_, _, other) in pairs
        if (mmlu.parse(one) != mmlu.parse(other) if name == "mmlu" else one != other)
    ]
    gaps = [(name, gap(reference, prompt, one, other)) for name, prompt, one, other in parted]
    print(f"{len(pairs) - len(parted)} of {len(pairs)} answers agree; gaps where they part: {gaps}")
    assert len(parted) <= 0.02 * len(pairs), gaps
    assert all(distance < TIE for _, distance in gaps), gaps

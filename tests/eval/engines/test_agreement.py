"""vLLM and transformers on the real SmolLM2 and prompts of every benchmark, in float32."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from eval import benchmarks
from eval.benchmarks import Item
from eval.engines import Decoding, Engine
from eval.engines.hf import HfEngine
from eval.engines.vllm import VllmEngine
from eval.letters import best, letter_ids
from eval.session import chosen_items
from scripts.cell import base_model
from scripts.cell.evaluation import load_benchmark
from scripts.config import compose
from tests.asked import asked
from tests.ties import gap_at_parting

pytest.importorskip("vllm")

ROOT = Path(__file__).resolve().parents[3]
DATA = {"fixtures": ROOT / "tests" / "fixtures", "real files": ROOT.parent / "shared" / "data"}
ITEMS = 40  # of each benchmark
DECODING = Decoding(max_new_tokens=16)  # no stops: a text ends by its length or by the end-of-sequence token
TIE = 1e-3  # of logits, whose float32 rounding over 30 layers is some 1e-4

Asked = tuple[Item, tuple[str, ...]]  # and the letters that are scored; none where text is generated


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return compose(["profile=smol", f"cache_dir={tmp_path_factory.mktemp('cache')}"])


@pytest.fixture(scope="module")
def engines(cfg: Any) -> tuple[HfEngine, VllmEngine]:
    smol = base_model.checkpoint(cfg.model, cfg.cache_dir)
    engine = VllmEngine(smol, dtype="float32", cpu_kv_cache_gib=1)
    return HfEngine(smol, dtype="float32", batch_size=4), engine


def mixed(cfg: Any, data: Path, tokenizer: Any) -> Iterator[Asked]:
    """Items of every benchmark that is there, in the chat format, evenly over its tasks."""
    cfg.data = str(data)
    for name, config in cfg.benchmark.items():
        if (data / config.source.folder).is_dir():
            prompting = benchmarks.prompting(config, "authors", chat=True)
            for item in chosen_items(load_benchmark(cfg, name), tokenizer, prompting, ITEMS):
                yield item, prompting.letters


def answers(engine: Engine, items: Sequence[Asked]) -> list[Any]:
    """The text or the letters' logits for each item, in order."""
    found: list[Any] = [None] * len(items)
    for letters in {letters for _, letters in items}:
        places = [place for place, (_, own) in enumerate(items) if own == letters]
        requests = asked([items[place][0].prompt for place in places])
        if letters:
            outputs: Any = engine.letter_logits(requests, letter_ids(engine.tokenizer, letters))
        else:
            outputs = ((index, texts[0]) for index, texts in engine.generate(requests, DECODING))
        for index, output in outputs:
            found[places[index]] = output
    return found


def gap(reference: HfEngine, prompt: str, one: Any, other: Any) -> float:
    """How far the two candidates are apart, by their logits, where two different answers part."""
    if isinstance(one, str):
        return gap_at_parting(reference.model, reference.tokenizer, prompt, one, other)
    return one[best(one)] - one[best(other)]


def parted(one: Any, other: Any) -> bool:
    return one != other if isinstance(one, str) else best(one) != best(other)


@pytest.mark.slow
@pytest.mark.parametrize("data", DATA)
def test_greedy_answers_agree_and_differ_only_at_ties(
    cfg: Any, engines: tuple[HfEngine, VllmEngine], data: str
) -> None:
    if not DATA[data].is_dir():
        pytest.skip(f"the benchmarks' original files are not in {DATA[data]}")
    reference, engine = engines
    items = list(mixed(cfg, DATA[data], reference.tokenizer))
    assert len({letters for _, letters in items}) > 1
    pairs = list(zip(items, answers(reference, items), answers(engine, items), strict=True))
    gaps = [gap(reference, item.prompt, one, other) for (item, _), one, other in pairs if parted(one, other)]
    print(f"{len(pairs) - len(gaps)} of {len(pairs)} answers agree; gaps where they part: {gaps}")
    assert len(gaps) <= 0.02 * len(pairs), gaps
    assert all(distance < TIE for distance in gaps), gaps

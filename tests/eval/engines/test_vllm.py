"""vLLM against transformers on the real SmolLM2, in float32, with adapters."""

import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

import mos
from data_prep.chat import user_prompt
from eval.engines import Decoding, Request, private, resolve_dtype
from eval.engines.hf import HfEngine
from eval.engines.vllm import VllmEngine, _lora_settings
from eval.letters import letter_ids
from scripts.cell import base_model
from scripts.config import compose
from tests.asked import asked
from tests.mos_vllm.make import save_adapter

pytest.importorskip("vllm")
from vllm.v1.worker import lora_model_runner_mixin

QUESTIONS = [f"A farmer has {n} hens and buys {n % 7 + 2} more. How many hens are there now?" for n in range(3, 13)]
PROMPTS = [user_prompt(f"Question: {question}", "Answer:") for question in QUESTIONS]


@pytest.fixture(scope="module")
def smol(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_model.checkpoint(compose(["model=smollm2_135m"]).model, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def adapters(
    smol: Path, tmp_path_factory: pytest.TempPathFactory, random_lora: Callable[[Path, Path, int], Path]
) -> list[Path]:
    return [random_lora(smol, tmp_path_factory.mktemp("lora"), seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def engine(smol: Path, adapters: list[Path]) -> VllmEngine:
    return VllmEngine(smol, adapters, dtype="float32", max_model_len=512, cpu_kv_cache_gib=1)


@pytest.mark.slow
def test_vllm_and_transformers_agree_for_the_base_model_and_adapters(
    engine: VllmEngine, smol: Path, adapters: list[Path]
) -> None:
    reference = HfEngine(smol, adapters, dtype="float32", max_model_len=512)
    letters = letter_ids(reference.tokenizer, "ABCD")
    texts = {}
    decoding = Decoding(24, stops=("\n\n",))
    for adapter in (None, *adapters, None):  # the base again: it must not keep anything of an adapter
        texts[adapter] = dict(engine.generate(asked(PROMPTS, adapter), decoding))
        assert texts[adapter] == dict(reference.generate(asked(PROMPTS, adapter), decoding))
        logits = dict(engine.letter_logits(asked(PROMPTS, adapter), letters))
        for index, expected in reference.letter_logits(asked(PROMPTS, adapter), letters):
            assert logits[index] == pytest.approx(expected, abs=1e-3)
    assert texts[None] != texts[adapters[0]] != texts[adapters[1]]
    requests = [Request(prompt, adapter) for prompt in PROMPTS for adapter in (None, *adapters)]
    for index, answer in engine.generate(requests, decoding):
        prompt, adapter = requests[index]
        assert answer == texts[adapter][PROMPTS.index(prompt)]


@pytest.mark.slow
def test_stops_samples_and_long_prompts(engine: VllmEngine) -> None:
    whole = dict(engine.generate(asked(PROMPTS[:2]), Decoding(24)))
    stop = whole[0][0][8:10]
    assert dict(engine.generate(asked(PROMPTS[:1]), Decoding(24, stops=("never", stop)))) == {
        0: [whole[0][0].partition(stop)[0]]
    }
    sampled = [
        dict(engine.generate(asked(PROMPTS[:2]), Decoding(8, samples=4, temperature=1.0, top_p=0.9, seed=seed)))
        for seed in (3, 3, 4)
    ]
    assert sampled[0] == sampled[1] != sampled[2]
    assert all(len(texts) == 4 for texts in sampled[0].values())
    assert dict(engine.generate(asked(["word " * 600]), Decoding(5, samples=2, temperature=1.0))) == {0: ["", ""]}
    assert dict(engine.letter_logits(asked(["word " * 600]), {"A": 330})) == {0: {}}


@pytest.mark.slow
def test_an_engine_that_was_stopped_early_goes_on(engine: VllmEngine) -> None:
    outputs = engine.generate(asked(PROMPTS), Decoding(24))
    next(outputs)
    outputs.close()
    assert len(dict(engine.generate(asked(PROMPTS), Decoding(4)))) == len(PROMPTS)


@pytest.mark.slow
def test_the_letters_of_a_benchmark_may_be_ten(engine: VllmEngine, smol: Path) -> None:
    reference = HfEngine(smol, dtype="float32", max_model_len=512)
    letters = letter_ids(reference.tokenizer, "ABCDEFGHIJ")
    logits = dict(engine.letter_logits(asked(PROMPTS[:2]), letters))
    for index, expected in reference.letter_logits(asked(PROMPTS[:2]), letters):
        assert logits[index] == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_a_closed_engine_makes_room_for_another(smol: Path) -> None:
    """The engine runs in our process, so nothing but `close` gives its memory back."""
    texts = []
    for _ in range(2):
        short = VllmEngine(smol, dtype="float32", max_model_len=256, cpu_kv_cache_gib=1)
        texts.append(dict(short.generate(asked(PROMPTS[:2]), Decoding(4))))
        model = weakref.ref(private.core(short.llm))
        short.close()
        assert model() is None
    assert texts[0] == texts[1]


def test_the_rank_of_the_adapters_sets_the_buffers(
    tiny_lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _lora_settings([], 2) == {}
    assert _lora_settings([tiny_lora], 2)["max_lora_rank"] == 8
    config = (tiny_lora / "adapter_config.json").read_text()
    for rank, allowed in ((280, 320), (8, 8), (9, 16)):
        (tmp_path / "adapter_config.json").write_text(config.replace('"r": 4', f'"r": {rank}'))
        assert _lora_settings([tiny_lora, tmp_path], 2)["max_lora_rank"] == allowed
    (tmp_path / "adapter_config.json").write_text(config.replace('"r": 4', '"r": 513'))
    with pytest.raises(ValueError, match="up to rank 512, not 513; use engine=hf"):
        _lora_settings([tmp_path], 2)


@pytest.mark.parametrize(
    ("settings", "allowed"), [({"r": 8}, 8), ({"r": 9}, 16), ({"r": 4, "equivalent_rank": 12, "private_rank": 0}, 16)]
)
def test_a_slot_has_room_for_r_and_e_of_mos(
    tiny_lora: Path, tmp_path: Path, settings: dict[str, int], allowed: int
) -> None:
    save_adapter(tmp_path / "mos", target_modules=["q_proj"], **settings)
    assert _lora_settings([tiny_lora, tmp_path / "mos"], 2)["max_lora_rank"] == allowed


def test_a_broken_mos_adapter_is_told_before_the_engine_starts(tmp_path: Path) -> None:
    save_adapter(tmp_path / "mos", target_modules=["q_proj"])
    (tmp_path / "mos" / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="has a broken or truncated adapter_model"):
        _lora_settings([tmp_path / "mos"], 2)


@pytest.mark.slow
def test_mos_as_it_is_saved_answers_as_its_export(smol: Path, adapters: list[Path], tmp_path: Path) -> None:
    """In one engine with LoRA, with more adapters than slots."""
    manager = lora_model_runner_mixin.LRUCacheWorkerLoRAManager
    native = [
        save_adapter(tmp_path / f"mos-{seed}", seed, model=LlamaForCausalLM.from_pretrained(smol, dtype=torch.float32))
        for seed in (0, 1)
    ]
    exported = [tmp_path / f"lora-{seed}" for seed in (0, 1)]
    for folder, target in zip(native, exported, strict=True):
        mos.export_lora(folder, target)
    every = [*native, *exported, *adapters]
    engine = VllmEngine(smol, every, dtype="float32", max_model_len=512, cpu_kv_cache_gib=1, max_loras=2)
    assert lora_model_runner_mixin.LRUCacheWorkerLoRAManager is manager  # nothing of it stays behind
    letters = letter_ids(engine.tokenizer, "ABCD")
    requests = [Request(prompt, folder) for prompt in PROMPTS for folder in every]
    texts = [text for _, text in sorted(engine.generate(requests, Decoding(16)))]
    logits = [found for _, found in sorted(engine.letter_logits(requests, letters), key=lambda pair: pair[0])]
    for start in range(0, len(requests), len(every)):
        assert texts[start : start + 2] == texts[start + 2 : start + 4]
        for mine, other in zip(logits[start : start + 2], logits[start + 2 : start + 4], strict=True):
            assert mine == pytest.approx(other, abs=1e-4)
    plain = [text for _, text in sorted(engine.generate(asked(PROMPTS), Decoding(16)))]
    assert plain != texts[:: len(every)] != texts[1 :: len(every)]
    engine.close()


def test_the_type_of_a_named_dtype_is_kept() -> None:
    assert resolve_dtype("bfloat16") == "bfloat16"
    assert resolve_dtype("auto") in ("bfloat16", "float32")

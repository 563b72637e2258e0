"""Hand-computed numbers; each expected value is written out as the sum that gives it."""

import pytest

from scripts.cost import formulas as costs
from scripts.cost.formulas import Adapter, Architecture

LLAMA7B = Architecture(vocab=32000, hidden=4096, inner=11008, blocks=32, heads=32, kv_heads=32)
TINY = Architecture(vocab=10, hidden=4, inner=6, blocks=2, heads=2, kv_heads=1, tied=True)
LORA2 = Adapter(4_997_120, 2, tuple(LLAMA7B.linears))


def test_weights_of_llama2_7b_are_its_published_count() -> None:
    assert LLAMA7B.linear_weights == 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert LLAMA7B.linear_weights + LLAMA7B.other_weights == 6_738_415_616


def test_tied_and_grouped_query_shapes() -> None:
    assert TINY.linears["k_proj"] == (4, 2)
    assert TINY.linear_weights == 2 * (16 + 8 + 8 + 16 + 3 * 24)
    assert TINY.other_weights == 10 * 4 + (2 * 2 + 1) * 4


def test_quantization_state_is_that_of_qlora() -> None:
    assert costs.quantization_bits(double=False) == 0.5
    assert costs.quantization_bits(double=True) == pytest.approx(0.127, abs=1e-4)  # QLoRA, section 3


def test_training_memory_of_llama2_7b() -> None:
    """4 bits of 6.476e9 weights, 0.127 bits of state, float32 for the rest, 16 bytes per adapter weight."""
    memory = costs.training_memory(LLAMA7B, LORA2, batch=16, length=512, checkpointing=True, double_quantization=True)
    assert memory.weights == 6_476_005_376 / 2
    assert memory.quantization == pytest.approx(6_476_005_376 * 0.126953125 / 8)
    assert memory.embeddings == 4 * (2 * 32000 * 4096 + 65 * 4096)
    assert memory.adapter + memory.gradients + memory.optimizer == 16 * 4_997_120
    assert memory.logits == 12 * 8192 * 32000 + 2 * 32000 * 4096
    block = 8192 * (52 * 4096 + 18 * 11008 + 2 * 7 * 2) + 2 * 2 * (8 * 4096 + 3 * (4096 + 11008))
    assert memory.activations == 4 * 8192 * 4096 * 32 + max(block - memory.logits, 0)
    assert memory.peak == pytest.approx(12.17e9, rel=0.01)


def test_without_checkpointing_every_block_is_kept() -> None:
    options = {"batch": 2, "length": 8, "double_quantization": False}
    adapter = Adapter(100, 3, ("q_proj", "k_proj"))
    memory = costs.training_memory(TINY, adapter, checkpointing=False, **options)
    assert memory.activations == 2 * (16 * (48 * 4 + 4 * 2 + 18 * 6 + 2 * 3 * 2) + 2 * 3 * (4 + 4 + 4 + 2))


def test_training_flops_by_hand() -> None:
    """Per token: linears 2 x 240, attention 2 x 2 x 4 x 8, adapter 2 x 2 x 3 x 14, head 2 x 10 x 4."""
    adapter = Adapter(100, 3, ("q_proj", "k_proj"))
    linear, attention, low_rank, head = 480, 128, 168, 80
    forward = linear + attention + low_rank
    backward = linear + 2 * attention + 2 * low_rank
    options = {"tokens": 5, "length": 8}
    assert costs.training_flops(TINY, adapter, checkpointing=False, **options) == 5 * (forward + backward + 2 * head)
    assert costs.training_flops(TINY, adapter, checkpointing=True, **options) == 5 * (2 * forward + backward + 2 * head)


def test_generation_flops_by_hand() -> None:
    prefill, decode = costs.generation_flops(TINY, None, prompt=3, new=2)
    per_token = 2 * (240 + 40)
    assert prefill == 3 * (per_token + 2 * 2 * 4 * 3)
    assert decode == 2 * (per_token + 4 * 2 * 4 * (3 + 1))


def test_kv_cache_of_llama2_7b_is_half_a_mebibyte_per_token() -> None:
    assert costs.kv_bytes(LLAMA7B, 1) == 524_288


def test_evaluated_model_is_16_bit() -> None:
    assert costs.evaluation_weights(LLAMA7B, None) == 2 * 6_738_415_616
    assert costs.evaluation_weights(LLAMA7B, LORA2) == 2 * (6_738_415_616 + 4_997_120)


def test_vera_at_the_matched_budget() -> None:
    assert costs.vera_adapter(LLAMA7B, 256).trainable == 1_417_216
    rank = costs.vera_rank(LLAMA7B, 4_997_120)
    assert costs.vera_adapter(LLAMA7B, rank).trainable <= 4_997_120 < costs.vera_adapter(LLAMA7B, rank + 1).trainable
    assert rank == 16_237
    assert costs.vera_adapter(LLAMA7B, rank).frozen == rank * 2 * 11008

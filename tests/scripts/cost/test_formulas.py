"""Hand-computed numbers; each expected value is written out as the sum that gives it."""

import pytest

from scripts.cost import formulas as costs
from scripts.cost.architecture import Adapter, Architecture, Linear

LLAMA7B = Architecture(
    vocab=32000,
    hidden=4096,
    blocks=32,
    attention=4096,
    kv=4096,
    norms=32 * 2 * 4096,
    linears=(Linear("square", 4096, 4096, 32 * 4), Linear("up", 4096, 11008, 32 * 2), Linear("down", 11008, 4096, 32)),
    other_weights=2 * 32000 * 4096 + 65 * 4096,
)
TINY = Architecture(
    vocab=10,
    hidden=4,
    blocks=2,
    attention=4,
    kv=2,
    norms=2 * 2 * 4,
    linears=(
        Linear("q", 4, 4, 2),
        Linear("kv", 4, 2, 4),
        Linear("o", 4, 4, 2),
        Linear("up", 4, 6, 4),
        Linear("down", 6, 4, 2),
    ),
    other_weights=10 * 4 + (2 * 2 + 1) * 4,
)
LORA2 = Adapter(4_997_120, 2, LLAMA7B.linears)
QUERY_AND_KEY = Adapter(100, 3, (Linear("q", 4, 4, 2), Linear("k", 4, 2, 2)))


def test_weights_of_llama2_7b_are_its_published_count() -> None:
    assert LLAMA7B.linear_weights == 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert LLAMA7B.weights == 6_738_415_616


def test_inner_layers_are_what_attention_and_stream_leave() -> None:
    assert (LLAMA7B.inner, LLAMA7B.inner_outputs) == (11008, 2 * 11008)
    assert (TINY.inner, TINY.inner_outputs) == (6, 2 * 6)


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


def test_lora_on_every_layer_keeps_48h_4kv_18f_per_token() -> None:
    factors = 2 * 2 * (8 * 4096 + 3 * (4096 + 11008))  # 16-bit copies, r = 2
    assert costs.block_activations(LLAMA7B, LORA2, 1) == 52 * 4096 + 18 * 11008 + 2 * 7 * 2 + factors
    every = Adapter(100, 3, TINY.linears)
    factors = 2 * 3 * (8 + 2 * 6 + 8 + 2 * 10 + 10)
    assert costs.block_activations(TINY, every, 16) == 16 * (48 * 4 + 4 * 2 + 18 * 6 + 2 * 3 * 7) + factors


def test_without_checkpointing_every_block_is_kept() -> None:
    """Per token: norms 2 x 4h, attention 4h + 4kv, gate, up and their product 12f; two adapted layers 2 x (6h + 2r)."""
    options = {"batch": 2, "length": 8, "double_quantization": False}
    memory = costs.training_memory(TINY, QUERY_AND_KEY, checkpointing=False, **options)
    per_token = 8 * 4 + 4 * 4 + 4 * 2 + 12 * 6 + 2 * (6 * 4 + 2 * 3)
    assert memory.activations == 2 * (16 * per_token + 2 * 3 * (4 + 4 + 4 + 2))


def test_training_flops_by_hand() -> None:
    """Per token: linears 2 x 240, attention 2 x 2 x 4 x 8, adapter 2 x 2 x 3 x 14, head 2 x 10 x 4."""
    linear, attention, low_rank, head = 480, 128, 168, 80
    forward = linear + attention + low_rank
    backward = linear + 2 * attention + 2 * low_rank
    options = {"tokens": 5, "length": 8}
    kept = costs.training_flops(TINY, QUERY_AND_KEY, checkpointing=False, **options)
    again = costs.training_flops(TINY, QUERY_AND_KEY, checkpointing=True, **options)
    assert kept == 5 * (forward + backward + 2 * head)
    assert again == 5 * (2 * forward + backward + 2 * head)


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
    assert costs.vera_adapter(LLAMA7B, rank).count == 7 * 32
    assert costs.vera_adapter(LLAMA7B, rank).frozen == rank * 2 * 11008

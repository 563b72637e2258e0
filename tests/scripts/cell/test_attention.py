"""Attention by products: the same as torch's fused one, to rounding."""

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from scripts.cell import training
from scripts.cell.attention import attend, use_products
from tests.scripts.cell.test_training import metrics

SMALL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def outputs(checkpoint, dtype: torch.dtype, products: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a padded batch at its tokens, and the gradient of their sum of squares by the first projection."""
    network = LlamaForCausalLM.from_pretrained(checkpoint, attn_implementation="sdpa")
    if products:
        use_products(network)
    ids = torch.arange(3, 51).view(2, 24)
    mask = torch.ones_like(ids)
    mask[1, 17:] = 0
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = network(input_ids=ids, attention_mask=mask).logits.float()[mask.bool()]
    logits.square().sum().backward()
    return logits, network.model.layers[0].self_attn.k_proj.weight.grad


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_logits_and_gradients_of_a_padded_batch_are_those_of_the_fused_kernel(tiny_checkpoint, dtype, rounding):
    fused, products = (outputs(tiny_checkpoint, dtype, products) for products in (False, True))
    for expected, found in zip(fused, products, strict=True):
        assert (found - expected).norm() <= rounding * expected.norm()
        assert not torch.equal(found, expected)  # it is another computation


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (lambda: LlamaForCausalLM(LlamaConfig(**SMALL, attention_dropout=0.1)), "does not compute dropout"),
        (lambda: GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32)), "compute dropout"),
        (lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8)), "does not compute capped scores"),
        (lambda: GptOssForCausalLM(GptOssConfig(**SMALL, head_dim=8, num_local_experts=2)), "does not compute sinks"),
    ],
    ids=["llama", "gpt2", "gemma2", "gpt-oss"],
)
def test_a_network_that_asks_for_more_is_refused_as_it_was(network, said):
    network = network()
    before = network.config._attn_implementation
    with pytest.raises(ValueError, match=f"trainer.attention=products .*{said}.*use trainer.attention=fused"):
        use_products(network)
    assert network.config._attn_implementation == before


@pytest.mark.parametrize(
    ("asked", "said"),
    [({"dropout": 0.1}, "dropout"), ({"s_aux": torch.zeros(2), "softcap": 50.0}, "capped scores and sinks")],
)
def test_what_a_config_does_not_tell_is_refused_at_the_call(asked, said):
    x, mask = torch.ones(1, 2, 3, 4), torch.zeros(1, 1, 3, 3)
    attend(None, x, x, x, mask, 0.5, dropout=0.0, s_aux=None, softcap=None, sliding_window=3, position_ids=mask)
    with pytest.raises(ValueError, match=f"does not compute {said}"):
        attend(None, x, x, x, mask, 0.5, **asked)


def test_a_token_sees_none_that_follow(tiny_checkpoint):
    network = LlamaForCausalLM.from_pretrained(tiny_checkpoint)
    use_products(network)
    ids = torch.arange(3, 27)[None]
    other = ids.clone()
    other[0, 12:] = 5
    with torch.no_grad():
        logits, changed = (network(input_ids=x).logits[0] for x in (ids, other))
    assert torch.equal(logits[:12], changed[:12])
    assert not torch.equal(logits[12:], changed[12:])


@pytest.mark.parametrize("method", [["method=lora"], ["method=mos", "method.equivalent_rank=4"]])
def test_twenty_steps_have_the_same_losses_to_rounding(tiny, tmp_path, method):
    """All three settings of speed of the profile `smol`, against the plain computation; without dropout."""
    plain = ["trainer.dequantize_once=false", "trainer.attention=fused", "trainer.fast_dropout=false"]
    short = ["trainer.max_steps=20", "trainer.logging_steps=1", "trainer.learning_rate=0.001", "method.dropout=0"]
    found = {}
    for name, overrides in (("plain", plain), ("smol", [])):
        path = training.train(tiny(f"runs_dir={tmp_path / name}", *short, *method, *overrides))
        found[name] = [line["loss"] for line in metrics(path) if "loss" in line], path.name
    (plain_losses, plain_key), (smol_losses, smol_key) = found["plain"], found["smol"]
    assert len(plain_losses) == 20
    assert smol_losses == pytest.approx(plain_losses, rel=5e-3)
    assert smol_losses != plain_losses
    assert smol_key != plain_key

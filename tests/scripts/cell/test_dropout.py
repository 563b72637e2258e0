"""Dropout by random bits: the law of torch's, on a CPU."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, VeraConfig, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaForCausalLM

import mos
from scripts.cell.dropout import BitDropout, use_bits
from scripts.cell.runs import identity
from scripts.config import compose

N = 200_000


def within(count: int, n: int, p: float) -> bool:
    """Whether a count of n trials fits the probability p: at most five standard deviations away."""
    return abs(count - n * p) <= 5 * math.sqrt(n * p * (1 - p)) + 1


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("p", [2**-16, 0.001, 0.1, 0.5, 0.9, 1 - 2**-16])
def test_as_many_are_dropped_as_p_says_and_the_others_scaled(p: float) -> None:
    y = BitDropout(p)(torch.ones(N))
    assert within(int((y == 0).sum()), N, p)
    scale = 1 / (1 - round(p * 2**16) / 2**16)
    assert torch.all((y == 0) | (y == torch.tensor(scale)))


def test_neighbours_are_dropped_independently() -> None:
    """Four numbers come from one draw of 64 bits, so distances up to eight are looked at, and all sixteen patterns."""
    gone = BitDropout(0.1)(torch.ones(N)) == 0
    for distance in range(1, 9):
        assert within(int((gone[distance:] & gone[:-distance]).sum()), N - distance, 0.01)
    patterns = gone.view(-1, 4).long() @ torch.tensor([8, 4, 2, 1])
    for pattern in range(16):
        k = pattern.bit_count()
        assert within(int((patterns == pattern).sum()), N // 4, 0.1**k * 0.9 ** (4 - k))


def test_modules_and_calls_draw_masks_of_their_own() -> None:
    first, second = BitDropout(0.1), BitDropout(0.1)
    x = torch.ones(N)
    gone = [module(x) == 0 for module in (first, second, first)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert within(int((gone[one] & gone[other]).sum()), N, 0.01)


@settings(max_examples=50)
@given(
    shape=st.lists(st.integers(0, 7), max_size=4),
    p=st.floats(0.01, 0.99),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_any_shape_and_type_and_the_gradient_has_the_same_mask(shape: list[int], p: float, dtype: torch.dtype) -> None:
    x = torch.ones(shape, dtype=dtype, requires_grad=True)
    y = BitDropout(p)(x)
    assert (y.shape, y.dtype) == (x.shape, dtype)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_what_is_not_contiguous_is_dropped_too() -> None:
    y = BitDropout(0.5)(torch.ones(300, 100).T)
    assert within(int((y == 0).sum()), y.numel(), 0.5)


@pytest.mark.parametrize("p", [0.0, 2**-18, 1.0])
def test_at_the_ends_it_is_that_of_torch(p: float) -> None:
    """Where p rounds to nothing or to all."""
    x, state = torch.ones(100), torch.get_rng_state()
    found = BitDropout(p)(x)
    torch.set_rng_state(state)
    assert torch.equal(found, nn.Dropout(p)(x))


def test_evaluation_drops_nothing_and_draws_nothing() -> None:
    x, state = torch.randn(10), torch.get_rng_state()
    assert BitDropout(0.5).eval()(x) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_a_seed_a_restored_state_and_a_recomputation_give_the_same_masks() -> None:
    drop, x = BitDropout(0.3), torch.ones(1001, requires_grad=True)
    state = torch.get_rng_state()
    first = drop(x)
    torch.set_rng_state(state)
    assert torch.equal(drop(x), first)
    assert not torch.equal(drop(x), first)
    y = checkpoint(lambda x: drop(x).square(), x, use_reentrant=False)
    y.sum().backward()
    assert torch.equal(x.grad, 2 * y.detach())  # of a number that is kept: d (sx)^2 = 2 s^2 x


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=2, lora_dropout=0.1, target_modules=["q_proj"]),
        VeraConfig(r=2, vera_dropout=0.1, target_modules=["q_proj"]),
        mos.MosConfig(r=2, dropout=0.1, target_modules=["q_proj"], shards_per_vector=2),
        mos.TiedLoraConfig(r=2, dropout=0.1, target_modules=["q_proj", "k_proj", "v_proj"]),
        mos.ProloraConfig(r=2, dropout=0.1, target_modules=["q_proj"], sharing_a=1, sharing_b=1, unshared_rank=1),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_every_method_gets_it_and_the_base_model_keeps_its_own(config: object, tiny_checkpoint: object) -> None:
    base = LlamaForCausalLM.from_pretrained(tiny_checkpoint)
    base.model.layers[0].add_module("own", nn.Dropout(0.1))
    model = get_peft_model(base, config)
    before = sum(isinstance(module, nn.Dropout) for module in model.modules())
    use_bits(model)
    kinds = [type(module) for module in model.modules() if isinstance(module, nn.Dropout)]
    assert kinds.count(nn.Dropout) == 1
    assert kinds.count(BitDropout) == before - 1 >= 2
    assert all(module.p == 0.1 for module in model.modules() if isinstance(module, BitDropout))


def test_a_key_tells_of_it_and_the_paper_has_torchs() -> None:
    one, other = (
        compose(["profile=smol", "method=lora", f"trainer.fast_dropout={value}"]) for value in ("true", "false")
    )
    assert identity(one) != identity(other)
    assert not compose(["profile=paper"]).trainer.fast_dropout

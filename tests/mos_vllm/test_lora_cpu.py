"""The kernel for CPUs gives each token its own adapter's update, however tokens are grouped and ranks are known."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("vllm", reason="vLLM is not installed")
from mos_vllm.lora_cpu import FEW, GroupedLoRA, One, Several, by_slot, grouped

SLOTS, R, H, WIDTHS = 6, 8, 12, (10, 4)


def stacked(seed, ranks, dtype):
    """Slots of two fused layers: A (slots, 1, R, h), B (slots, 1, o, R), zero beyond the rank of each slot."""
    generator = torch.Generator().manual_seed(seed)
    a = [torch.randn(SLOTS, 1, R, H, generator=generator) for _ in WIDTHS]
    b = [torch.randn(SLOTS, 1, o, R, generator=generator) for o in WIDTHS]
    for slot, rank in enumerate(ranks):
        for each in a:
            each[slot, 0, rank:] = 0
        for each in b:
            each[slot, 0, :, rank:] = 0
    return tuple(each.to(dtype) for each in a), tuple(each.to(dtype) for each in b)


def expected(y, x, a, b, scale, slots):
    """Token by token, at the full rank."""
    y = y.double().clone()
    for token, slot in enumerate(slots):
        if slot >= 0:
            updates = [x[token].double() @ each[slot, 0].double().T for each in a]
            y[token] += scale * torch.cat([u @ e[slot, 0].double().T for u, e in zip(updates, b, strict=True)])
    return y


def kernel(slots, ranks):
    made = object.__new__(GroupedLoRA)
    made.found = by_slot(torch.tensor(slots))
    made.groups = grouped(made.found, len(slots), ranks)
    return made


@given(
    slots=st.lists(st.integers(-1, SLOTS - 1), min_size=1, max_size=24),
    ranks=st.lists(st.integers(1, R), min_size=SLOTS, max_size=SLOTS),
    known=st.sets(st.integers(0, SLOTS - 1)),
    seed=st.integers(0, 9),
    scale=st.sampled_from([1.0, 0.5]),
)
@settings(max_examples=100)
def test_each_token_gets_the_update_of_its_own_adapter(slots, ranks, known, seed, scale):
    a, b = stacked(seed, ranks, torch.float32)
    generator = torch.Generator().manual_seed(seed + 1)
    x, y = torch.randn(len(slots), H, generator=generator), torch.randn(len(slots), sum(WIDTHS), generator=generator)
    wanted = expected(y, x, a, b, scale, slots)
    kernel(slots, {slot: ranks[slot] for slot in known}).add_lora_linear(y, x, a, b, scale, WIDTHS)
    torch.testing.assert_close(y.double(), wanted, rtol=1e-4, atol=1e-4)


@given(slots=st.lists(st.integers(-1, SLOTS - 1), min_size=1, max_size=24), seed=st.integers(0, 9))
@settings(max_examples=40)
def test_the_two_halves_of_fully_sharded_lora_give_the_same(slots, seed):
    a, b = stacked(seed, [R] * SLOTS, torch.float32)
    x = torch.randn(len(slots), H, generator=torch.Generator().manual_seed(seed))
    whole, halves = torch.zeros(2, len(slots), sum(WIDTHS))
    made = kernel(slots, {})
    made.add_lora_linear(whole, x, a, b, 0.5, WIDTHS)
    hidden = torch.zeros(len(WIDTHS), len(slots), R)
    made.add_shrink(hidden, x, a, 0.5)
    made.add_expand(halves, hidden, b, WIDTHS)
    torch.testing.assert_close(whole, halves, rtol=1e-4, atol=1e-4)


@given(slots=st.lists(st.integers(-1, SLOTS - 1), min_size=1, max_size=12), seed=st.integers(0, 9))
@settings(max_examples=40)
def test_logits_and_embeddings_of_tokens_without_an_adapter_are_left_alone(slots, seed):
    """vLLM's own kernel takes the last slot for them."""
    [a, _], [b, _] = stacked(seed, [R] * SLOTS, torch.float32)
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(len(slots), H, generator=generator), torch.randn(len(slots), WIDTHS[0], generator=generator)
    wanted = expected(y, x, [a], [b], 0.5, slots)
    made = kernel(slots, {})
    made._sampler_indices, made.indices_len = torch.tensor(slots), [None, len(slots)]
    padded = torch.cat([y, torch.zeros(len(slots), 6)], 1)
    made.add_lora_logits(padded, x, a, b, 0.5)
    torch.testing.assert_close(padded[:, : WIDTHS[0]].double(), wanted, rtol=1e-4, atol=1e-4)
    assert not padded[:, WIDTHS[0] :].any()
    rows, y = torch.randn(len(slots), R, generator=generator), torch.zeros(len(slots), WIDTHS[0])
    made.add_lora_embedding(y, rows, b)
    for token, slot in enumerate(slots):
        torch.testing.assert_close(y[token], rows[token] @ b[slot, 0].T if slot >= 0 else y[token] * 0)


def test_bfloat16_agrees_with_the_exact_update():
    slots = [0, 1, 2, -1, 3, 3, 4, 4, 4, 4, 4]
    a, b = stacked(0, [R] * SLOTS, torch.bfloat16)
    x, y = torch.randn(len(slots), H).bfloat16(), torch.zeros(len(slots), sum(WIDTHS)).bfloat16()
    wanted = expected(y, x, a, b, 1.0, slots)
    kernel(slots, {}).add_lora_linear(y, x, a, b, 1.0, WIDTHS)
    torch.testing.assert_close(y.double(), wanted, rtol=0.05, atol=0.5)


def test_adapters_with_few_tokens_share_their_products():
    slots = [0, 1, 2, 3, 3, *[4] * (FEW + 1), -1]
    one, several = kernel(slots, {}).groups
    assert isinstance(one, One) and one.slot == 4
    assert isinstance(several, Several) and several.numbers == [0, 1, 2, 3] and len(several.kept) == 5
    assert [type(each) for each in kernel([0, -1], {}).groups] == [One]


def test_a_rank_that_a_reload_has_raised_counts_at_once():
    """vLLM prepares no new step for it: the mapping and the slots are those of the step before."""
    a, b = stacked(0, [R] * SLOTS, torch.float32)
    x, ranks = torch.randn(3, H), {0: 1, 1: 1, 2: 1}
    made = kernel([0, 1, 2], ranks)
    ranks |= {0: R, 1: R, 2: R}
    y = torch.zeros(3, sum(WIDTHS))
    made.add_lora_linear(y, x, a, b, 1.0, WIDTHS)
    torch.testing.assert_close(y.double(), expected(y * 0, x, a, b, 1.0, [0, 1, 2]), rtol=1e-4, atol=1e-4)

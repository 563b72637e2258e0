"""Gradients: of pools that blocks share, second ones, and those of torch.func."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from reference import factor
from torch import nn
from torch.func import functional_call, grad, jvp, vmap

from mos import MosConfig, ProloraConfig, TiedLoraConfig
from mos.autograd import Assemble, Collector, PoolGradient, scatter
from mos.common.low_rank import AddLowRank, add_low_rank
from mos.shards import assemble

CONFIGS = {
    "lora": LoraConfig(r=2, target_modules=r"\d+", init_lora_weights=False),
    "mos": MosConfig(r=2, equivalent_rank=2, target_modules=r"\d+", init_weights=False),
    "mos, scaled": MosConfig(r=2, target_modules=r"\d+", init_weights=False, random_scaling=True),
    "prolora": ProloraConfig(r=3, unshared_rank=1, target_modules=r"\d+", init_weights=False),
    "tied_lora": TiedLoraConfig(r=2, target_modules=r"\d+", init_weights=False),
}


@pytest.fixture(params=CONFIGS)
def model(request):
    """Three layers of width 8 in float64, which share what the method shares."""
    torch.manual_seed(0)
    layers = nn.Sequential(*[nn.Linear(8, 8) for _ in range(3)]).double()
    return get_peft_model(layers, copy.deepcopy(CONFIGS[request.param]), autocast_adapter_dtype=False).double()


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def loss(model, parameters, x):
    return functional_call(model, parameters, (x,)).pow(2).sum()


def numeric(function, at, direction, step=1e-5):
    """The derivative of `function` in a direction, by a central difference."""
    ahead = {name: p.detach() + step * direction[name] for name, p in at.items()}
    behind = {name: p.detach() - step * direction[name] for name, p in at.items()}
    return (function(ahead) - function(behind)) / (2 * step)


@pytest.fixture
def x():
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_second_derivatives(model, x):
    """Of the squared length of the gradient: backward through a backward pass against differences of the first."""
    parameters = trained(model)

    def length(at):
        with torch.enable_grad():
            at = {name: p.requires_grad_() for name, p in at.items()}
            first = torch.autograd.grad(loss(model, at, x), list(at.values()), create_graph=True)
            return sum(g.pow(2).sum() for g in first)

    second = torch.autograd.grad(
        sum(
            g.pow(2).sum()
            for g in torch.autograd.grad(model(x).pow(2).sum(), list(parameters.values()), create_graph=True)
        ),
        list(parameters.values()),
    )
    direction = {name: torch.randn_like(p) for name, p in parameters.items()}
    expected = numeric(length, parameters, direction)
    actual = sum((g * d).sum() for g, d in zip(second, direction.values(), strict=True))
    torch.testing.assert_close(actual, expected.detach(), rtol=1e-5, atol=1e-6)


def test_a_penalty_on_the_gradient_of_the_input(model, x):
    """As gradient penalties and adversarial training compute it (`create_graph=True`, then `backward`)."""
    x.requires_grad_()
    (first,) = torch.autograd.grad(model(x).pow(2).sum(), x, create_graph=True)
    first.pow(2).sum().backward()
    direction = {name: torch.randn_like(p) for name, p in trained(model).items()}

    def penalty(at):
        with torch.enable_grad():
            return torch.autograd.grad(loss(model, at, x), x)[0].pow(2).sum()

    actual = sum((p.grad * direction[name]).sum() for name, p in trained(model).items())
    torch.testing.assert_close(actual, numeric(penalty, trained(model), direction), rtol=1e-5, atol=1e-6)


def test_functional_call_and_grad(model, x):
    """functional_call leaves the model as it was, and grad agrees with backward."""
    before = model(x)
    parameters = {name: p.detach() for name, p in trained(model).items()}
    gradients = grad(lambda at: loss(model, at, x))(parameters)
    other = functional_call(model, {name: torch.zeros_like(p) for name, p in parameters.items()}, (x,))
    assert not torch.allclose(other, before)
    assert torch.equal(model(x), before)
    model(x).pow(2).sum().backward()
    for name, parameter in trained(model).items():
        torch.testing.assert_close(gradients[name], parameter.grad)


def test_vmap_over_examples(model, x):
    """The gradients of single examples, as differential privacy needs them."""
    parameters = {name: p.detach() for name, p in trained(model).items()}
    each = vmap(grad(lambda at, row: loss(model, at, row[None])), in_dims=(None, 0))(parameters, x)
    for i, row in enumerate(x):
        model.zero_grad()
        model(row[None]).pow(2).sum().backward()
        for name, parameter in trained(model).items():
            torch.testing.assert_close(each[name][i], parameter.grad)


def test_vmap_over_models(model, x):
    """An ensemble: one call with a batch of adapters."""
    parameters = {name: torch.stack([p.detach(), 2 * p.detach()]) for name, p in trained(model).items()}
    both = vmap(lambda at: functional_call(model, at, (x,)))(parameters)
    torch.testing.assert_close(both[0], model(x))
    assert not torch.allclose(both[1], both[0])


def test_forward_mode(model, x):
    parameters = {name: p.detach() for name, p in trained(model).items()}
    direction = {name: torch.randn_like(p) for name, p in parameters.items()}
    _, actual = jvp(lambda at: loss(model, at, x), (parameters,), (direction,))
    torch.testing.assert_close(actual, numeric(lambda at: loss(model, at, x), parameters, direction), rtol=1e-5, atol=0)


def test_a_learned_scale_trains(x):
    """A gradient that nobody asked for until today arrives all the same."""
    layers = nn.Sequential(*[nn.Linear(8, 8) for _ in range(3)]).double()
    model = get_peft_model(layers, copy.deepcopy(CONFIGS["mos, scaled"])).double()
    layer = model.get_submodule("base_model.model.1")
    layer.mos_scale["default"] = scale = layer.mos_scale["default"].double().requires_grad_()
    model(x).pow(2).sum().backward()
    assert scale.grad.abs().max() > 0


@pytest.mark.parametrize("needed", [(1, 1, 1, 1), (0, 1, 1, 1), (1, 0, 0, 1), (0, 1, 0, 0), (0, 0, 1, 0)])
def test_low_rank_product_and_its_gradients(needed):
    """Against plain products, with any of its inputs frozen; and second derivatives."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"y": (2, 3, 6), "x": (2, 3, 12), "a": (4, 12), "b": (6, 4)}
    y, x, a, b = (
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_(bool(flag))
        for shape, flag in zip(shapes.values(), needed, strict=True)
    )
    torch.testing.assert_close(add_low_rank(y, x, a, b, 0.7), y + 0.7 * x @ a.T @ b.T)
    assert torch.autograd.gradcheck(lambda *each: add_low_rank(*each, 0.7), (y, x, a, b))
    assert torch.autograd.gradgradcheck(lambda *each: add_low_rank(*each, 0.7), (y, x, a, b))


def test_the_low_rank_product_is_one_node():
    y, x, a, b = (torch.randn(shape, requires_grad=True) for shape in ((5, 6), (5, 12), (3, 12), (6, 3)))
    [(node, _)] = add_low_rank(y, x, a, b, 1.0).grad_fn.next_functions  # behind the view that is given out
    assert type(node).__name__ == f"{AddLowRank.__name__}Backward"


@st.composite
def blocks_of_a_pool(draw):
    """A pool, the indices of some blocks into it, which may repeat, and a gradient of each block's factor."""
    n, width, r, shards = (draw(st.integers(1, 6)) for _ in range(4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    pool = torch.randn(n, width, generator=generator, dtype=torch.float64, requires_grad=True)
    indices = [torch.randint(n, (r, shards), generator=generator) for _ in range(draw(st.integers(1, 4)))]
    grads = [torch.randn(r, shards * width, generator=generator, dtype=torch.float64) for _ in indices]
    return pool, indices, [g if draw(st.booleans()) else None for g in grads]


@settings(max_examples=50)
@given(blocks_of_a_pool())
def test_scattering_is_the_transpose_of_assembling(case):
    pool, indices, grads = case
    actual = scatter(grads, torch.cat(indices), pool.shape)
    if all(grad is None for grad in grads):
        assert actual is None
        return
    pairs = [(factor(pool, index), grad) for index, grad in zip(indices, grads, strict=True) if grad is not None]
    torch.autograd.backward(*zip(*pairs, strict=True))
    torch.testing.assert_close(actual, pool.grad)


def test_stand_ins_take_no_memory():
    pools = torch.randn(64, 64, requires_grad=True), torch.randn(64, 32, requires_grad=True)
    made = PoolGradient.apply(*pools, 8, 4, [None] * 10)
    assert [t.shape for t in made[:2]] == [(8, 256), (8, 128)]
    assert {t.untyped_storage().data_ptr() for t in made} == {p.untyped_storage().data_ptr() for p in pools}


@pytest.mark.parametrize("takers", [1, 3, 4, 7])
def test_collected_gradients_reach_the_pools_however_many_blocks_take_part(takers):
    """Fewer than were planned, or more; and in a second pass that finds leftovers of the first."""
    pools = tuple(torch.randn(12, 2, requires_grad=True) for _ in range(2))
    collector = Collector(blocks=4)
    for _ in range(2):
        indices = torch.randint(12, (takers, 2, 3, 2))
        expected = [torch.zeros_like(pool) for pool in pools]
        for index in indices:
            for i in range(2):
                expected[i].index_add_(0, index[i].flatten(), torch.ones(6, 2))
        total = 0
        for index in indices:
            detached = (pool.detach() for pool in pools)
            for each in Assemble.apply(*collector.take(pools, index), *detached, index, None):
                total = total + each.sum()
        for pool, got in zip(pools, torch.autograd.grad(total, pools), strict=True):
            torch.testing.assert_close(got, expected[0 if pool is pools[0] else 1])


def test_gradients_that_would_be_lost_are_refused():
    pools = torch.randn(2, 12, 2, requires_grad=True)
    index = torch.zeros(2, 1, 2, dtype=torch.int)
    stand_ins = torch.zeros(2, 1, 4, requires_grad=True)
    for pair in ((pools[0], pools[1].detach()), (pools[0].detach(), pools[1])):
        with pytest.raises(RuntimeError, match="pass the pool detached"):
            Assemble.apply(*stand_ins, *pair, index, None)
    factors = Assemble.apply(*stand_ins, *pools.detach(), index, "not now")
    for pool, own, got in zip(pools, index, factors, strict=True):
        assert torch.equal(got, assemble(pool, own))
    with pytest.raises(RuntimeError, match="not now"):
        factors[1].sum().backward()

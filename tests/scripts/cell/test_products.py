"""Products of bfloat16 by float32: what a CPU with instructions for them gives, to the order of the sum."""

import pytest
import torch
from torch import nn

from scripts.cell import products, runs, training
from scripts.cell.products import InFloat32, quick_products
from scripts.cell.settings import TrainerSettings
from scripts.config import compose
from tests.scripts.cell.test_training import metrics


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def exact(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The product in float64, rounded once."""
    return (a.double() @ b.double()).bfloat16()


@pytest.mark.parametrize("shapes", [[(7, 33), (33, 5)], [(3, 7, 33), (3, 33, 5)]])
def test_a_product_is_the_exact_one_but_for_the_last_bit(shapes):
    a, b = (numbers(*shape, seed=seed) for seed, shape in enumerate(shapes))
    with InFloat32():
        found = a @ b
    assert found.dtype == torch.bfloat16
    assert (found != exact(a, b)).float().mean() < 0.02  # a sum that lies at the middle of two numbers
    torch.testing.assert_close(found, exact(a, b), rtol=2**-7, atol=1e-6)


def test_added_products_keep_their_factors():
    a, b, c = numbers(4, 6), numbers(6, 3, seed=1), numbers(4, 3, seed=2)
    with InFloat32():
        found = torch.addmm(c, a, b, alpha=0.5, beta=2)
        several = torch.baddbmm(c[None], a[None], b[None], alpha=0.5)
    torch.testing.assert_close(found.double(), 2 * c.double() + 0.5 * a.double() @ b.double(), rtol=2**-7, atol=1e-2)
    torch.testing.assert_close(several[0].double(), c.double() + 0.5 * a.double() @ b.double(), rtol=2**-7, atol=1e-2)


def test_a_layer_under_autocast_multiplies_forward_and_backward_in_float32():
    """Its three products pass through here, and one of float32 is not touched."""
    multiplied = []

    class Watched(InFloat32):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in products.PRODUCTS:
                multiplied.append(args[0].dtype)
            return super().__torch_dispatch__(func, types, args, kwargs)

    layer, x = nn.Linear(6, 3), torch.randn(2, 4, 6, requires_grad=True)
    with Watched(), torch.autocast("cpu", torch.bfloat16):
        layer(x).float().sum().backward()
    assert multiplied == [torch.bfloat16] * 3  # forward, and one for each gradient
    with Watched():
        assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def on(monkeypatch, architecture: str, *, gpu: bool = False, **features: bool) -> None:
    """Let torch say that this machine has such a CPU, and perhaps a GPU."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": architecture, **features})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)


@pytest.mark.parametrize(
    ("architecture", "features", "dtype", "emulated"),
    [
        ("x86_64", {"avx512_bf16": False}, "bfloat16", True),
        ("x86_64", {"avx512_bf16": True}, "bfloat16", False),
        ("x86_64", {"avx512_bf16": False}, "float32", False),
        ("aarch64", {"bf16": True}, "bfloat16", False),
        ("x86_64", {"avx512_bf16": False, "gpu": True}, "bfloat16", False),
    ],
)
def test_it_depends_on_the_machine_and_the_type_alone(monkeypatch, architecture, features, dtype, emulated):
    on(monkeypatch, architecture, **features)
    settings = TrainerSettings.of(compose([f"trainer.compute_dtype={dtype}"]).trainer)
    assert isinstance(quick_products(settings), InFloat32) == emulated


def test_a_run_has_the_same_losses_to_rounding(tiny, tmp_path, monkeypatch):
    found, short = {}, ["trainer.max_steps=20", "trainer.logging_steps=1", "trainer.learning_rate=0.001"]
    for instructions in (True, False):
        on(monkeypatch, "x86_64", avx512_bf16=instructions)
        own = tiny(f"runs_dir={tmp_path / str(instructions)}", "method=mos", "method.equivalent_rank=4", *short)
        path = training.train(own)
        found[instructions] = [line["loss"] for line in metrics(path) if "loss" in line]
        assert runs.load(path).info["hardware"]["avx512_bf16"] is instructions
    assert len(found[True]) == 20
    assert found[False] == pytest.approx(found[True], rel=5e-3)
    assert found[False] != found[True]

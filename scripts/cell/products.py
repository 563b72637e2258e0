"""Products of bfloat16 on a CPU that has no instructions for them."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from scripts.cell.settings import TrainerSettings

PRODUCTS = {getattr(torch.ops.aten, name).default for name in ("mm", "addmm", "bmm", "baddbmm")}


class InFloat32(TorchDispatchMode):
    """Within it, products of bfloat16 on the CPU are computed in float32 and rounded, forward and backward.

    The result is the one that such instructions give, but for the order of the sum: the product of two bfloat16 numbers
    has no rounding error in float32, and a CPU that multiplies them adds in float32 too.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in PRODUCTS or args[0].dtype != torch.bfloat16 or args[0].device.type != "cpu":
            return func(*args, **kwargs or {})
        return func(*(factor.float() for factor in args), **kwargs or {}).to(torch.bfloat16)


def quick_products(settings: TrainerSettings) -> AbstractContextManager[Any]:
    """`InFloat32` where it is several times as fast: an x86 CPU without AVX512-BF16, which most are."""
    cpu = torch.cpu.get_capabilities()
    slow = cpu["architecture"] == "x86_64" and not cpu["avx512_bf16"]
    return InFloat32() if slow and settings.compute_dtype == "bfloat16" else nullcontext()

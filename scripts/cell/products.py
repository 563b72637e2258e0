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
    """`InFloat32` where it is several times as fast: training on an x86 CPU without AVX512-BF16.

    On a GPU it would change nothing and cost each operation a call of Python.
    """
    slow = torch.cpu.get_capabilities().get("avx512_bf16") is False  # absent on processors of other families
    on_cpu = not torch.cuda.is_available()
    return InFloat32() if slow and on_cpu and settings.compute_dtype == "bfloat16" else nullcontext()

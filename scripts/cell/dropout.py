"""Dropout on a CPU, where torch's own random numbers take a quarter of a training step."""

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

BITS = 16  # random bits per number that is kept or dropped


class BitDropout(nn.Dropout):
    """Dropout whose masks are compared random bits: the law of `nn.Dropout`, with p rounded to a multiple of 2^-16.

    Each number is dropped with the probability p, independently of all others, and what is kept is divided by 1 - p.
    The bits come from torch's own generator, so seeds, checkpoints and recomputed forward passes work as they do for
    `nn.Dropout`. A tensor on another device is left to `nn.Dropout`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: any shape, floating point; returns the same shape and type"""
        dropped = round(self.p * 2**BITS)
        if not self.training or x.device.type != "cpu" or not 0 < dropped < 2**BITS:
            return super().forward(x)
        return x * kept(x, dropped).mul_(2**BITS / (2**BITS - dropped))


def kept(x: Tensor, dropped: int) -> Tensor:
    """Ones and zeros in shape and type of x; a number is zero with the probability dropped / 2^16."""
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # four numbers each
    uniform = bits.view(torch.int16)[: x.numel()].view(x.shape)  # -2^15 ... 2^15 - 1
    first = dropped - 2 ** (BITS - 1)  # the smallest that is kept
    return uniform.clamp_(first - 1, first).sub_(first - 1).to(x.dtype)  # comparisons to bool take six times as long


def use_bits(model: nn.Module) -> None:
    """Replace the dropout of the adapters by `BitDropout`; that of the base model stays."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer) and isinstance(layer, nn.Module):
            for inner, module in list(layer.named_modules()):
                if type(module) is nn.Dropout:
                    model.set_submodule(f"{name}.{inner}", BitDropout(module.p, module.inplace))

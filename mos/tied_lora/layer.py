"""The Tied LoRA layer, and what it shares with others."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mos.common.layer import LowRankLayer
from mos.common.parameters import AdapterParameters
from mos.tied_lora.config import TiedLoraConfig


class Firsts(NamedTuple):
    """The first layer of the model, of a layer's type and of its block: those that a layer shares A, B and u with."""

    model: "TiedLoraLinear"
    type: "TiedLoraLinear"
    block: "TiedLoraLinear"


class TiedLoraLinear(LowRankLayer):
    """The fused projection's B and v, split by rows into those of q, k and v: the same numbers, on separate layers."""

    adapter_layer_names = ("tied_lora_A", "tied_lora_B", "tied_lora_u", "tied_lora_v")

    def __init__(self, base_layer: nn.Module, **kwargs: object) -> None:
        super().__init__(base_layer, **kwargs)
        self.tied_lora_A = AdapterParameters()  # (r, h), shared by all layers
        self.tied_lora_B = AdapterParameters()  # (o, r), shared by those of one type
        self.tied_lora_u = AdapterParameters()  # (r), shared by those of one block
        self.tied_lora_v = AdapterParameters()  # (o), of this layer alone

    def create(self, adapter: str, config: TiedLoraConfig, shared: Firsts) -> None:
        h, o, r = self.in_features, self.out_features, config.r
        if shared.model is self:
            self.tied_lora_A[adapter] = nn.Parameter(torch.empty(r, h))
            nn.init.uniform_(self.tied_lora_A[adapter], -(h**-0.5), h**-0.5)  # kaiming-uniform with a = sqrt(5)
        else:
            self.tied_lora_A.share(adapter, shared.model.tied_lora_A)
        if shared.type is self:
            self.tied_lora_B[adapter] = nn.Parameter(torch.zeros(o, r))
            if not config.init_weights:
                nn.init.normal_(self.tied_lora_B[adapter], std=h**-0.5)
        else:
            self.tied_lora_B.share(adapter, shared.type.tied_lora_B)
        if shared.block is self:
            self.tied_lora_u[adapter] = nn.Parameter(torch.ones(r))
        else:
            self.tied_lora_u.share(adapter, shared.block.tied_lora_u)
        self.tied_lora_v[adapter] = nn.Parameter(torch.ones(o))

    def factors(self, adapter: str) -> tuple[Tensor, Tensor]:
        """diag(u) A and diag(v) B."""
        v = self.tied_lora_v[adapter]
        shared = [own[adapter] for own in (self.tied_lora_u, self.tied_lora_A, self.tied_lora_B)]
        u, a, b = (parameter.to(v.device) for parameter in shared)
        a, b = u[:, None] * a, v[:, None] * b  # (r, 1) (r, h) and (o, 1) (o, r)
        self.note_ddp()
        if (reason := self.refusal(*shared)) and a.requires_grad:
            a.register_hook(partial(refuse, reason))
        return a, b


def refuse(reason: str, grad: Tensor) -> None:
    """A gradient hook that stops the backward pass."""
    raise RuntimeError(reason)

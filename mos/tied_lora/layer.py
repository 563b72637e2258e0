"""The Tied LoRA layer, and where it finds what it shares."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mos.common.layer import LowRankLayer
from mos.tied_lora.config import TiedLoraConfig


class Hosts(NamedTuple):
    """The layers on which a layer finds what it shares: the first targeted one of the model, its type and its block.

    They are referred to as layers, because loading and casting replace the tensors.
    """

    model: "TiedLoraLayer"
    type: "TiedLoraLayer"
    block: "TiedLoraLayer"


class TiedLoraLayer(LowRankLayer):
    """The fused projection's B and v, split by rows into those of q, k and v: the same numbers, on separate layers."""

    adapter_layer_names = ("tied_lora_A", "tied_lora_B", "tied_lora_u", "tied_lora_v")
    other_param_names = (*LowRankLayer.other_param_names, "hosts")

    def __init__(self, base_layer: nn.Module, **kwargs: object) -> None:
        super().__init__(base_layer, **kwargs)
        self.tied_lora_A = nn.ParameterDict()  # (r, h), on the model's host
        self.tied_lora_B = nn.ParameterDict()  # (o, r), on the type's host
        self.tied_lora_u = nn.ParameterDict()  # (r), on the block's host
        self.tied_lora_v = nn.ParameterDict()  # (o), on every layer
        self.hosts: dict[str, Hosts] = {}  # not registered: the file holds each tensor once

    def create(self, adapter: str, config: TiedLoraConfig, shared: Hosts) -> None:
        self.hosts[adapter] = hosts = shared
        h, o, r = self.in_features, self.out_features, config.r
        if hosts.model is self:
            self.tied_lora_A[adapter] = nn.Parameter(torch.empty(r, h))
            nn.init.uniform_(self.tied_lora_A[adapter], -(h**-0.5), h**-0.5)  # kaiming-uniform with a = sqrt(5)
        if hosts.type is self:
            self.tied_lora_B[adapter] = nn.Parameter(torch.zeros(o, r))
            if not config.init_weights:
                nn.init.normal_(self.tied_lora_B[adapter], std=h**-0.5)
        if hosts.block is self:
            self.tied_lora_u[adapter] = nn.Parameter(torch.ones(r))
        self.tied_lora_v[adapter] = nn.Parameter(torch.ones(o))

    def update(self, x: Tensor, adapter: str) -> Tensor:
        y = super().update(x, adapter)
        self.note_ddp()
        if (reason := self.refusal()) and y.requires_grad:
            y.register_hook(partial(refuse, reason))
        return y

    def factors(self, adapter: str) -> tuple[Tensor, Tensor]:
        """diag(u) A and diag(v) B."""
        hosts, v = self.hosts[adapter], self.tied_lora_v[adapter]
        shared = (hosts.block.tied_lora_u, hosts.model.tied_lora_A, hosts.type.tied_lora_B)
        u, a, b = (parameters[adapter].to(v.device) for parameters in shared)
        return u[:, None] * a, v[:, None] * b  # (r, 1) (r, h) and (o, 1) (o, r)


def refuse(reason: str, grad: Tensor) -> None:
    """A gradient hook that stops the backward pass."""
    raise RuntimeError(reason)

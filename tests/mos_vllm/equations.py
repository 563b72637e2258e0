"""The factors that an adapter stands for, by the equations of the paper, slowly."""

import torch
from torch import Tensor

from mos_vllm.adapter import Adapter


def factors(adapter: Adapter) -> dict[str, tuple[Tensor, Tensor]]:
    """A (r, h) and B (o, r) of each module by the equations: rows of shards, scaled; alpha / r is left out."""
    found = {}
    for pools in adapter.pools:
        for block, name in enumerate(pools.modules):
            a = torch.stack([torch.cat([pools.a[i] for i in row]) for row in pools.index[0, block].tolist()])
            b = torch.stack([torch.cat([pools.b[i] for i in row]) for row in pools.index[1, block].tolist()], 1)
            if pools.scale is not None:
                a = a * pools.scale[block][:, None]
            found[name] = a, b
    return found

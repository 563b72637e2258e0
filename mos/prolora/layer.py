"""The PRoLoRA layer, and how a chunk becomes a factor."""

import torch
from torch import Tensor, nn

from mos.common.layer import LowRankLayer
from mos.common.parameters import AdapterParameters
from mos.common.private import BufferDict
from mos.prolora.config import ProloraConfig


def spread(chunk: Tensor, copies: int, width: int) -> Tensor:
    """Lay `copies` of a chunk side by side, the i-th rotated by i along the rank, and cut them to `width`.

    chunk: (r - u, ceil(width / copies)) -> (r - u, width); row j of copy i is row (j + i) mod (r - u) of the chunk
    """
    return torch.cat([chunk.roll(-i, 0) for i in range(copies)], 1)[:, :width]


def assemble(
    a: Tensor, b: Tensor, *unshared: Tensor, sharing: tuple[int, int], shape: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The factors of a layer: the spread chunks, then the unshared ranks.

    a, b:     the chunks (r - u, ceil(h / m)) and (ceil(o / n), r - u)
    unshared: none, or A (u, h) and B (o, u)
    sharing, shape: (m, n) and (o, h); returns (r, h), (o, r)
    """
    (m, n), (o, h) = sharing, shape
    a, b = spread(a, m, h), spread(b.T, n, o).T  # (r - u, h), (o, r - u)
    if unshared:
        a, b = torch.cat([a, unshared[0]]), torch.cat([b, unshared[1]], 1)  # (r, h), (o, r)
    return a, b


class ProloraLinear(LowRankLayer):
    """A linear layer whose factors are chunks, repeated and rotated, with u unshared ranks beside them."""

    adapter_layer_names = ("prolora_A", "prolora_B", "prolora_unshared_A", "prolora_unshared_B")
    other_param_names = (*LowRankLayer.other_param_names, "sharing", "prolora_shape")

    def __init__(self, base_layer: nn.Module, **kwargs: object) -> None:
        super().__init__(base_layer, **kwargs)
        self.prolora_A = AdapterParameters()  # (r - u, ceil(h / m)), the chunk A0
        self.prolora_B = AdapterParameters()  # (ceil(o / n), r - u)
        self.prolora_unshared_A = AdapterParameters()  # (u, h), only if u > 0
        self.prolora_unshared_B = AdapterParameters()  # (o, u)
        self.prolora_shape = BufferDict(persistent=True)  # (o, h): the chunks in the file do not tell where to cut
        self.sharing: dict[str, tuple[int, int]] = {}  # m, n

    def create(self, adapter: str, config: ProloraConfig, shared: None) -> None:
        h, o, u, rank = self.in_features, self.out_features, config.unshared_rank, config.r - config.unshared_rank
        self.sharing[adapter] = m, n = config.sharing_a, config.sharing_b
        self.prolora_shape[adapter] = torch.tensor([o, h])
        self.prolora_A[adapter] = nn.Parameter(torch.empty(rank, -(-h // m)))
        self.prolora_B[adapter] = nn.Parameter(torch.empty(-(-o // n), rank))
        if u:
            self.prolora_unshared_A[adapter] = nn.Parameter(torch.empty(u, h))
            self.prolora_unshared_B[adapter] = nn.Parameter(torch.empty(o, u))
        self.reset_parameters(adapter, config.init_weights)

    def reset_parameters(self, adapter: str, init_weights: bool) -> None:
        """A uniform with the bound of the full h, also for a chunk, which is narrower (rectified); B zero."""
        bound = self.in_features**-0.5
        for a, b in ((self.prolora_A, self.prolora_B), (self.prolora_unshared_A, self.prolora_unshared_B)):
            if adapter in a:
                nn.init.uniform_(a[adapter], -bound, bound)
                nn.init.zeros_(b[adapter]) if init_weights else nn.init.normal_(b[adapter], std=bound)

    def factors(self, adapter: str) -> tuple[Tensor, Tensor]:
        own = (self.prolora_A, self.prolora_B, self.prolora_unshared_A, self.prolora_unshared_B)
        chunks = [parameters[adapter] for parameters in own if adapter in parameters]
        return assemble(*chunks, sharing=self.sharing[adapter], shape=(self.out_features, self.in_features))

"""Keeping the factors of all layers between forward passes, where a caller asks for it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]  # A (r, h) and B (o, r)


class Scope:
    """One use of `kept_factors`."""

    def __init__(self) -> None:
        self.over = False


class Kept:
    """The factors of one layer that are kept, by adapter and type."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.pairs: dict[tuple[str, torch.dtype | None], Pair] = {}

    def usable(self, training: bool) -> bool:
        """Whether this forward pass may use kept factors.

        One that trains, or computes gradients, may not: a step of an optimizer will follow, and nobody tells when. So
        it also ends the keeping for all layers.
        """
        self.scope.over = self.scope.over or training or torch.is_grad_enabled()
        return not self.scope.over

    def forget(self, adapter: str) -> None:
        self.pairs = {key: pair for key, pair in self.pairs.items() if key[0] != adapter}


class Keeping:
    """What a layer is whose factors can be kept."""

    kept: Kept | None = None


@contextmanager
def kept_factors(model: nn.Module) -> Iterator[None]:
    """Assemble the factors of every layer once, at its first forward pass, and use them until the block is left.

    Without it each forward pass assembles them from the present weights. Inside it the caller promises not to change
    the weights of the adapters, other than by training: a forward pass in training mode or with gradients uses the
    present weights, and from then on nothing is kept. Adapters may be switched, added and deleted inside.

    model: anything that contains the layers of an adapter of this package
    """
    layers = [layer for layer in model.modules() if isinstance(layer, Keeping) and layer.kept is None]
    scope = Scope()
    for layer in layers:
        layer.kept = Kept(scope)
    try:
        yield
    finally:
        for layer in layers:
            layer.kept = None

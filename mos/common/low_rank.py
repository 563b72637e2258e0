"""The update that every method makes (Sec. 2 of the paper, Eq. 1), and its gradient."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mos.common import private


def add_low_rank(y: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """y + scaling * x A^T B^T.

    y: (..., o); x: (..., h); a: (r, h); b: (o, r); all of one type and on one device
    returns (..., o), which can be differentiated twice and more
    """
    if torch.is_grad_enabled() and not private.is_transformed():
        added = AddLowRank.apply(y, x, a, b, scaling)
    else:
        added = _with_hidden(y, x, a, b, scaling)[0]
    return added.view(y.shape)  # (t, o) -> (..., o); outside of the node, since views of its own must not be written to


def _with_hidden(y: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """The same as tokens (t, o), and x A^T of all tokens (t, r)."""
    tokens, outputs = x.reshape(-1, a.shape[1]), y.reshape(-1, b.shape[0])  # (..., h) -> (t, h), (..., o) -> (t, o)
    hidden = F.linear(tokens, a)  # (t, h) (h, r) -> (t, r)
    return torch.addmm(outputs, hidden, b.T, alpha=scaling), hidden  # (t, r) (r, o) -> (t, o)


class AddLowRank(torch.autograd.Function):
    """`add_low_rank` as one node: autograd on its own would multiply by the scaling in two more operations."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        added, hidden = _with_hidden(y, x, a, b, scaling)
        ctx.save_for_backward(x, hidden, a, b)
        ctx.scaling, ctx.shape = scaling, y.shape
        return added

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # grad: (t, o)
        x, hidden, a, b = ctx.saved_tensors
        tokens = x.reshape(-1, a.shape[1])  # (t, h)
        if torch.is_grad_enabled():  # a second derivative goes through the product, and the saved one has no graph
            hidden = tokens @ a.T
        grad_x = grad_a = grad_b = None
        _, needs_x, needs_a, needs_b, _ = ctx.needs_input_grad
        if needs_b:
            grad_b = torch.addmm(b.T, hidden.T, grad, beta=0, alpha=ctx.scaling).T  # (r, t) (t, o) -> (r, o) -> (o, r)
        grad_hidden = torch.addmm(hidden, grad, b, beta=0, alpha=ctx.scaling)  # (t, o) (o, r) -> (t, r)
        if needs_a:
            grad_a = grad_hidden.T @ tokens  # (r, t) (t, h) -> (r, h)
        if needs_x:
            grad_x = (grad_hidden @ a).view(x.shape)  # (t, r) (r, h) -> (t, h)
        return grad.view(ctx.shape), grad_x, grad_a, grad_b, None

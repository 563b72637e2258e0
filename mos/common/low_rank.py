"""The update that every method makes (Sec. 2 of the paper, Eq. 1), and its gradient."""

from typing import Any

import torch
from torch import Tensor

from mos.common import private


def add_low_rank(y: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """y + scaling * x A^T B^T of tokens.

    y: (t, o); x: (t, h); a: (r, h); b: (r, o), the columns of B as rows; all of one type and on one device
    returns (t, o), which can be differentiated twice and more
    """
    if torch.is_grad_enabled() and not private.is_transformed():
        return AddLowRank.apply(y, x, a, b, scaling)
    return torch.addmm(y, x @ a.T, b, alpha=scaling)  # (t, h) (h, r) -> (t, r); (t, r) (r, o) -> (t, o)


class AddLowRank(torch.autograd.Function):
    """`add_low_rank` as one node: autograd on its own would multiply by the scaling in two more operations."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        hidden = x @ a.T  # (t, h) (h, r) -> (t, r)
        ctx.save_for_backward(x, hidden, a, b)
        ctx.scaling = scaling
        return torch.addmm(y, hidden, b, alpha=scaling)  # (t, r) (r, o) -> (t, o)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, a, b = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative goes through the product, and the saved one has no graph
            hidden = x @ a.T
        grad_x = grad_a = grad_b = None
        _, needs_x, needs_a, needs_b, _ = ctx.needs_input_grad
        if needs_b:
            grad_b = torch.addmm(b, hidden.T, grad, beta=0, alpha=ctx.scaling)  # (r, t) (t, o) -> (r, o)
        grad_hidden = torch.addmm(hidden, grad, b.T, beta=0, alpha=ctx.scaling)  # (t, o) (o, r) -> (t, r)
        if needs_a:
            grad_a = grad_hidden.T @ x  # (r, t) (t, h) -> (r, h)
        if needs_x:
            grad_x = grad_hidden @ a  # (t, r) (r, h) -> (t, h)
        return grad, grad_x, grad_a, grad_b, None

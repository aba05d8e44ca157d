"""A frozen layer and its plain LoRA as one operation for autograd: the products themselves.

`down` has the scale in it. Factors come and gradients go as `up` [k, r, out], of k layers with one input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

How = tuple[bool, Tensor | None, Tensor | None]  # whether it is merged, left, right


class Copies(torch.autograd.Function):
    """Copies of many tensors in another precision, in one operation; and of their gradients in theirs."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.dtype = tensors[0].dtype
        return _copies(tensors, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_copies(grads, ctx.dtype)


def _copies(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    made = [torch.empty(one.shape, dtype=dtype, device=one.device) for one in tensors]
    torch._foreach_copy_(made, [*tensors])
    return tuple(made)


class LinearProduct(torch.autograd.Function):
    """x [..., in], W [k * out, in], bias [k * out], down [k * r, in] and up -> [..., k * out].

    If it is merged, W has the update in it already. Of an x that is left * right only these are kept.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, how: How
    ) -> Tensor:
        merged, left, right = how
        output = F.linear(x, weight, bias)  # of x as it is, which decides how torch rounds
        rows, narrow = x.reshape(-1, x.shape[-1]), None
        if not merged:
            # r rows by N columns, not N by r: on a CPU up to ten times as fast
            narrow = down @ rows.t()
            _add_product(output.view(-1, output.shape[-1]), narrow, up)
        ctx.save_for_backward(rows if left is None else None, weight, down, up, narrow, left, right)
        ctx.shape = x.shape
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, down, up, narrow, left, right = ctx.saved_tensors
        if rows is None:
            rows = (left * right).view(-1, ctx.shape[-1])
        grad = grad.reshape(-1, grad.shape[-1])
        merged = narrow is None
        if merged:
            narrow = down @ rows.t()
        k, rank, out = up.shape
        if k == 1:
            grad_narrow, grad_up = up[0] @ grad.t(), (narrow @ grad)[None]
        else:
            each = grad.view(-1, k, out).transpose(0, 1)  # [k, N, out]
            grad_narrow = torch.bmm(up, each.transpose(1, 2)).view(k * rank, -1)
            grad_up = torch.bmm(narrow.view(k, rank, -1), each)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            if not merged:
                grad_x.addmm_(grad_narrow.t(), down)
            grad_x = grad_x.view(ctx.shape)
        return grad_x, None, None, grad_narrow @ rows, grad_up, None


def factors_of(x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Two tensors whose product x is, if autograd keeps both of them anyway."""
    node = x.grad_fn
    if type(node).__name__ != "MulBackward0" or torch._C._autograd._top_saved_tensors_default_hooks(True):
        return None, None  # hooks, as those of checkpointing, count what they are asked for
    left, right = node._saved_self, node._saved_other
    fits = left is not None and right is not None and left.dtype == right.dtype == x.dtype
    return (left, right) if fits and left.shape == right.shape == x.shape else (None, None)


def _add_product(output: Tensor, narrow: Tensor, up: Tensor) -> None:
    """output [N, k * out] += up^T narrow of each layer, narrow [k * r, N]."""
    k, rank, out = up.shape
    if k == 1:
        output.addmm_(narrow.t(), up[0])
    else:
        each = output.view(-1, k, out).transpose(0, 1)
        each.baddbmm_(narrow.view(k, rank, -1).transpose(1, 2), up)

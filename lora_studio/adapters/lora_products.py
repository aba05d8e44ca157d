"""A frozen layer and its plain LoRA as one operation for autograd: the products themselves.

`down` has the scale in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Copies(torch.autograd.Function):
    """Copies of many tensors in another precision, in one operation; and of their gradients in theirs."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        """To one dtype; `backward` brings their gradients into the one that they came in."""
        ctx.dtype = tensors[0].dtype
        return _copies(tensors, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients in the tensors' own dtype."""
        return None, *_copies(grads, ctx.dtype)


def _copies(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    made = [torch.empty(one.shape, dtype=dtype, device=one.device) for one in tensors]
    torch._foreach_copy_(made, [*tensors])
    return tuple(made)


class LinearProduct(torch.autograd.Function):
    """x [..., in], W [out, in], bias [out], down [r, in] and up [r, out] -> [..., out].

    If it is merged, W has the update in it already.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, merged: bool
    ) -> Tensor:
        """The layer plus `x down^T up`, unless `weight` has it; `down x^T` [r, N] is kept for backward."""
        output = F.linear(x, weight, bias)  # of x as it is, which decides how torch rounds
        rows, narrow = x.reshape(-1, x.shape[-1]), None
        if not merged:
            # r rows by N columns, not N by r: on a CPU up to ten times as fast
            narrow = down @ rows.t()
            output.view(-1, output.shape[-1]).addmm_(narrow.t(), up)
        ctx.save_for_backward(rows, weight, down, up, narrow)
        ctx.shape = x.shape
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, down and up; weight and bias are frozen."""
        rows, weight, down, up, narrow = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        merged = narrow is None
        if merged:
            narrow = down @ rows.t()
        grad_narrow, grad_up = up @ grad.t(), narrow @ grad
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            if not merged:
                grad_x.addmm_(grad_narrow.t(), down)
            grad_x = grad_x.view(ctx.shape)
        return grad_x, None, None, grad_narrow @ rows, grad_up, None


class NarrowProduct(torch.autograd.Function):
    """rows [N, in], down [r, in] -> [N, r]; of rows that are left * right only these are kept."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, down: Tensor, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(down, left, right)
        return F.linear(rows, down)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        down, left, right = ctx.saved_tensors
        return grad @ down, grad.t() @ (left * right).view(-1, down.shape[1]), None, None


def product(x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor) -> Tensor:
    """x [..., in], W [out, in], bias [out], down [r, in], up [r, out] -> [..., out], in operations of torch.

    Its backward pass has one sum more than LinearProduct's, and no Python in it. In bfloat16 N rows by r are
    as fast as r by N, and nothing is transposed on the way back.
    """
    rows = x.reshape(-1, x.shape[-1])
    if x.is_contiguous() or bias is None:
        output = F.linear(rows, weight, bias)
    else:  # torch adds it to the rounded product then, and so the base does
        output = torch.mm(rows, weight.t()).add_(bias)
    left, right = factors_of(x)  # a GPU's memory is dear
    narrow = F.linear(rows, down) if left is None else NarrowProduct.apply(rows, down, left, right)
    return output.addmm_(narrow, up).view(*x.shape[:-1], -1)


def sees_one_place(layer: nn.Conv2d) -> bool:
    """Whether it is one product at each place of an image."""
    return (layer.kernel_size, layer.stride, layer.padding, layer.groups) == ((1, 1), (1, 1), (0, 0), 1)


def product_at_each_place(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor | None = None, up: Tensor | None = None
) -> Tensor:
    """The same of x [B, in, H, W] -> [B, out, H, W]; as products, since convolutions are slow backward."""
    flat, each = x.flatten(2), (len(x), -1, -1)
    weights = weight.expand(each)
    output = torch.bmm(weights, flat) if bias is None else torch.baddbmm(bias[:, None], weights, flat)
    if down is not None and up is not None:
        output.baddbmm_(up.t()[None].expand(each), torch.bmm(down[None].expand(each), flat))
    return output.view(len(x), -1, *x.shape[2:])


def products(x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor) -> Tensor:
    """x [..., in], W [k * out, in], bias [k * out], down [k * r, in], up [k, r, out] -> [k, ..., out]."""
    k, rank, out = up.shape
    rows = x.reshape(-1, x.shape[-1])
    whole = F.linear(rows, weight, bias).view(-1, k, out).transpose(0, 1)
    narrow = torch.mm(down, rows.t()).view(k, rank, -1).transpose(1, 2)
    return torch.baddbmm(whole, narrow, up).view(k, *x.shape[:-1], out)


def merged_products(x: Tensor, weights: Tensor, biases: Tensor | None) -> Tensor:
    """x [..., in], W [k, out, in] with their updates in them, biases [k, out] -> [k, ..., out]."""
    rows, weights = x.reshape(-1, x.shape[-1]).expand(len(weights), -1, -1), weights.transpose(1, 2)
    whole = torch.bmm(rows, weights) if biases is None else torch.baddbmm(biases[:, None], rows, weights)
    return whole.view(len(weights), *x.shape[:-1], -1)


def factors_of(x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Two tensors whose product x is, if autograd keeps both of them anyway."""
    node = x.grad_fn
    if type(node).__name__ != "MulBackward0" or torch._C._autograd._top_saved_tensors_default_hooks(True):
        return None, None  # hooks, as those of checkpointing, count what they are asked for
    left, right = node._saved_self, node._saved_other
    fits = left is not None and right is not None and left.dtype == right.dtype == x.dtype
    return (left, right) if fits and left.shape == right.shape == x.shape else (None, None)

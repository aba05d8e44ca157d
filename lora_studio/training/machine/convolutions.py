"""Frozen convolutions on a CPU, in float32, as matrix products.

oneDNN, which computes torch's there, lays each weight out anew at every call, forward and backward. Deep in a
network, where weights have millions of numbers and images few places, that takes longer than the convolution.
Where they have more places, and channels enough, Winograd's filtering has fewer multiplications.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes, is_traceable_wrapper_subclass

from lora_studio.adapters.lora_products import product_at_each_place, sees_one_place
from lora_studio.training.machine.winograd import WinogradConvolution, transformed

# By measuring steps of the bases of benchmarks/train_step.py in turns.
FEW = 4  # places of an image of which a convolution is one matrix, hardly larger than its weight
WIDER = 4  # times as many channels as places in all outputs, from which on the weight is what takes long
MANY = 256  # channels of input and output, from which on Winograd's filtering pays
LARGE = 4  # times as many places in all outputs as channels, up to which it does


def shorten_convolutions(denoiser: nn.Module) -> None:
    """Give its convolutions products to take where these are sooner done. They round a little otherwise."""
    for module in denoiser.modules():
        if type(module) is nn.Conv2d and "forward" not in vars(module) and _is_usual(module):
            module.forward = partial(ShortConvolution(module), module.forward)  # type: ignore[method-assign]


def kept_bytes(denoiser: nn.Module) -> int:
    """What its convolutions have made of their weights so far, beside these."""
    forwards = (getattr(vars(one).get("forward"), "func", None) for one in denoiser.modules())
    return sum(one.made.nbytes for one in forwards if isinstance(one, ShortConvolution))


def _is_usual(layer: nn.Conv2d) -> bool:
    at_edges = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return at_edges and layer.groups == 1 and layer.dilation == (1, 1)


class ShortConvolution:
    """A layer, and what was made of its weight: one matrix for the smallest images, or those of Winograd."""

    def __init__(self, layer: nn.Conv2d) -> None:
        self._layer = layer
        self._made_of: tuple[object, ...] = ()
        self.made = torch.empty(0)

    def __call__(self, usual: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """x [B, C, H, W] -> [B, O, H', W']"""
        layer, weight = self._layer, self._layer.weight
        if torch.compiler.is_compiling() or not _is_frozen_float32(x, weight):
            return usual(x)
        if sees_one_place(layer):
            return product_at_each_place(x, weight.flatten(1), layer.bias)
        sides = self._sides_of_output(x)
        places = len(x) * sides[0] * sides[1]
        if x.shape[2] * x.shape[3] <= FEW:
            return self._as_one_matrix(x, sides)
        if len(weight) >= WIDER * places:
            columns: Tensor = ColumnProduct.apply(x, weight, layer.bias, layer.stride, layer.padding)
            return columns.unflatten(2, sides)
        if self._is_in_tiles(x) and min(weight.shape[:2]) >= max(MANY, places / LARGE):
            matrices = self._once(("tiles",), lambda: transformed(weight))
            output: Tensor = WinogradConvolution.apply(x, matrices, layer.bias)
            return output
        return usual(x)

    def _sides_of_output(self, x: Tensor) -> list[int]:
        layer = self._layer
        padded = (side + 2 * int(layer.padding[place]) for place, side in enumerate(x.shape[2:]))
        sizes = zip(padded, layer.kernel_size, layer.stride, strict=True)
        return [(side - kernel) // stride + 1 for side, kernel, stride in sizes]

    def _as_one_matrix(self, x: Tensor, sides: list[int]) -> Tensor:
        layer = self._layer

        def matrix() -> Tensor:
            ones = torch.eye(x[0].numel()).view(-1, *x.shape[1:])
            return F.conv2d(ones, layer.weight, None, layer.stride, layer.padding).flatten(1)

        output = (x.flatten(1) @ self._once(x.shape[1:], matrix)).view(len(x), -1, *sides)
        return output if layer.bias is None else output + layer.bias[:, None, None]

    def _is_in_tiles(self, x: Tensor) -> bool:
        layer = self._layer
        is_3_by_3 = layer.kernel_size == (3, 3) and layer.stride == layer.padding == (1, 1)
        return is_3_by_3 and x.shape[2] % 2 == x.shape[3] % 2 == 0

    def _once(self, what: tuple[object, ...], make: Callable[[], Tensor]) -> Tensor:
        """What is made of this weight, while it is the same; counters of a step's memory do not see it."""
        weight = self._layer.weight
        made_of = (what, weight.data_ptr(), weight._version)
        if made_of != self._made_of:
            with torch.no_grad(), _disable_current_modes():
                self._made_of, self.made = made_of, make()
        return self.made


def _is_frozen_float32(x: Tensor, weight: Tensor) -> bool:
    is_float32 = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    is_here = x.device.type == "cpu" and x.dim() == 4 and weight.is_contiguous()
    return is_float32 and is_here and not weight.requires_grad and not is_traceable_wrapper_subclass(weight)


class ColumnProduct(torch.autograd.Function):
    """x [B, C, H, W], W [O, C, k, l], bias [O] -> [B, O, L]: W times what lies around each of L places.

    Nothing of x is kept for the backward pass, as W is frozen.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        """All in columns [B, C * k * l, L]."""
        columns = F.unfold(x, weight.shape[2:], padding=padding, stride=stride)
        ctx.save_for_backward(weight)
        ctx.sides, ctx.around = x.shape[2:], {"stride": stride, "padding": padding}
        rows = weight.flatten(1).expand(len(x), -1, -1)
        return torch.bmm(rows, columns) if bias is None else torch.baddbmm(bias[:, None], rows, columns)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of x."""
        (weight,) = ctx.saved_tensors
        # B * L rows, not columns: the weight is read up to three times as fast
        rows = grad.transpose(1, 2).flatten(0, 1) @ weight.flatten(1)
        columns = rows.view(len(grad), grad.shape[2], -1).transpose(1, 2)
        return F.fold(columns, ctx.sides, weight.shape[2:], **ctx.around), None, None, None, None

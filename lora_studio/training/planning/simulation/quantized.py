"""Layers in fewer bits, by arithmetic: the bytes that are kept, and a whole weight while it is used."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Bits(NamedTuple):
    """Bytes that a weight takes."""

    per_number: float
    per_row: int


NF4_BLOCK, SCALES_BLOCK = 64, 256  # numbers that share a scale, and scales that do (arXiv 2305.14314, sec. 3)
BITS: Mapping[str, Bits] = {
    "bnb_int8": Bits(1, 4),  # a float32 scale a row
    "bnb_nf4": Bits(0.5 + 1 / NF4_BLOCK + 4 / (NF4_BLOCK * SCALES_BLOCK), 0),
    "torchao_int8": Bits(1, 4),
    "torchao_float8": Bits(1, 4),
}


class FewerBits(nn.Linear):
    """A frozen linear layer whose weight is so many bytes."""

    def __init__(self, layer: nn.Linear, bits: Bits, dtype: torch.dtype) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        size = math.ceil(layer.weight.numel() * bits.per_number + layer.out_features * bits.per_row)
        stored = torch.empty(size, 1, dtype=torch.uint8, device=layer.weight.device)
        self.weight = nn.Parameter(stored, requires_grad=False)
        self.register_parameter("bias", layer.bias)
        self.shape, self.dtype = layer.weight.shape, dtype

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], computed in the layer's dtype and given back in that of x."""
        product = _Product.apply(x.to(self.dtype), self.weight, self.shape)
        return (product if self.bias is None else product + self.bias.to(self.dtype)).to(x.dtype)


class _Product(torch.autograd.Function):
    """Of x and the whole weight, which is made for it, and once more for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stored: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(stored)
        ctx.shape = shape
        return x @ torch.empty(shape, dtype=x.dtype, device=x.device).t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad @ torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device), None, None


def in_fewer_bits(denoiser: nn.Module, paths: Sequence[str], how: str, dtype: torch.dtype) -> None:
    for path in paths:
        layer = denoiser.get_submodule(path)
        assert isinstance(layer, nn.Linear)
        denoiser.set_submodule(path, FewerBits(layer, BITS[how], dtype).eval())

"""Frozen 3 x 3 convolutions with many channels in less than half of their multiplications.

Winograd's minimal filtering F(2 x 2, 3 x 3), as in Lavin and Gray, "Fast Algorithms for Convolutional Neural
Networks" (2016), section 4.1: Y = A'[(G w G') * (B' d B)]A for each tile d of 4 x 4 places and its 2 x 2 of
the output. Over all tiles and channels, the element-wise product is 16 matrix products. In float32 the
largest error is two to three times that of a direct convolution.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_B = torch.tensor([[1.0, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_G = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_A = torch.tensor([[1.0, 1, 1, 0], [0, 1, -1, -1]])
_OF_TILES, _OF_WEIGHTS, _OF_PRODUCTS = (torch.kron(one, one) for one in (_B, _G, _A))
# A kernel turned by half a circle has this transform with the outer rows, and columns, in each other's place.
_TURNED = torch.arange(16).view(4, 4)[[3, 1, 2, 0]][:, [3, 1, 2, 0]].flatten()
_OF_TURNED_TILES, _OF_TURNED_PRODUCTS = _OF_TILES[_TURNED], _OF_PRODUCTS[:, _TURNED]


def transformed(weight: Tensor) -> Tensor:
    """[O, C, 3, 3] -> [16, O, C], 16/9 of its bytes: what `WinogradConvolution` multiplies by."""
    return (_OF_WEIGHTS @ weight.flatten(2).permute(2, 0, 1).flatten(1)).view(16, *weight.shape[:2])


class WinogradConvolution(torch.autograd.Function):
    """x [B, C, H, W] of even sides, matrices [16, O, C], bias [O] -> [B, O, H, W]; zeros lie around x.

    Nothing of x is kept for the backward pass, as the weight is frozen.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrices: Tensor, bias: Tensor | None) -> Tensor:
        """Matrices times columns, the faster way to read them."""
        ctx.save_for_backward(matrices)
        products = torch.bmm(matrices, _tiles(x, _OF_TILES))
        whole = (_OF_PRODUCTS @ products.flatten(1)).view(2, 2, matrices.shape[1], len(x), *_half(x))
        output = whole.permute(3, 2, 4, 0, 5, 1).reshape(len(x), -1, *x.shape[2:])
        return output if bias is None else output.add_(bias[:, None, None])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of x: a convolution by the turned kernel, in rows, as they are read faster here."""
        (matrices,) = ctx.saved_tensors
        products = torch.bmm(_tiles(grad, _OF_TURNED_TILES).transpose(1, 2), matrices)
        whole = (_OF_TURNED_PRODUCTS @ products.flatten(1)).view(2, 2, len(grad), *_half(grad), -1)
        return whole.permute(2, 5, 3, 0, 4, 1).reshape(len(grad), -1, *grad.shape[2:]), None, None


def _tiles(x: Tensor, transform: Tensor) -> Tensor:
    """[B, C, H, W] -> [16, C, B * H / 2 * W / 2], every tile of 4 x 4 places transformed."""
    tiles = F.pad(x, (1, 1, 1, 1)).unfold(2, 4, 2).unfold(3, 4, 2)
    return (transform @ tiles.permute(4, 5, 1, 0, 2, 3).reshape(16, -1)).view(16, x.shape[1], -1)


def _half(x: Tensor) -> tuple[int, int]:
    return x.shape[2] // 2, x.shape[3] // 2

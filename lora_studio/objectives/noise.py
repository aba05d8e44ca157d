"""Noise that is alike over parts of an image, of all sizes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

MOST_LEVELS = 6  # of coarser noise, each half as large as the one before


def pyramid(white: Tensor, discount: float, rng: Generator) -> Tensor:
    """White noise [B, C, H, W] with ever coarser noise added, level n times discount^n.

    Multi-resolution noise as J. Whitaker published it in 2023, but with steps of 2 instead of random ones and
    with a variance of exactly 1 at every position, which is what the noise schedule takes for granted.
    """
    height, width = white.shape[2:]
    total, variance = white, 1.0
    for level in range(1, MOST_LEVELS + 1):
        size = max(1, height >> level), max(1, width >> level)
        rows, columns = _enlarging(height, size[0]), _enlarging(width, size[1])
        coarse = torch.randn((*white.shape[:2], *size), generator=rng)
        total = total + discount**level * (rows @ coarse @ columns.T)
        variance += discount ** (2 * level)
        if size == (1, 1):
            break
    return total / variance**0.5


def _enlarging(to: int, size: int) -> Tensor:
    """[to, size]: linear interpolation whose rows have norm 1, so that white noise keeps its strength."""
    matrix = F.interpolate(torch.eye(size)[None], size=to, mode="linear", align_corners=False)[0].T
    return matrix / matrix.norm(dim=1, keepdim=True)

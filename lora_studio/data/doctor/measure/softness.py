"""How wide the sharpest edges are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_TILE = 16  # pixels
_LEAST_SLOPE = 4.0  # mean square of the gradient below which a tile has no edge, but only noise
_SHARPEST = 10  # percent of the tiles with edges; a subject may be sharp before a blurred background


def edge_width(luma: NDArray[np.float32]) -> float:
    """Root of gradient energy over Laplacian energy, in pixels, of the sharpest tenth; inf without edges.

    [H, W] in 0..255. Both are second moments of the same edges, so contrast cancels out: a lone edge blurred
    by a Gaussian of s pixels has s * sqrt(2), less where there are several; 0.3 to 0.6 is sharp.
    """
    if min(luma.shape) < 3:
        return float("inf")
    middle = luma[1:-1, 1:-1]
    left, right, up, down = luma[1:-1, :-2], luma[1:-1, 2:], luma[:-2, 1:-1], luma[2:, 1:-1]
    gradient = _by_tile(((right - left) ** 2 + (down - up) ** 2) * np.float32(0.25))
    laplacian = _by_tile((left + right + up + down - 4 * middle) ** 2)
    edges = gradient > _LEAST_SLOPE
    if not edges.any():
        return float("inf")
    return float(np.percentile(np.sqrt(gradient[edges] / np.maximum(laplacian[edges], 1e-6)), _SHARPEST))


def _by_tile(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means over tiles, flat; a picture smaller than a tile is one."""
    height, width = (max(1, side // _TILE) for side in values.shape)
    tile_height, tile_width = (min(side, _TILE) for side in values.shape)
    whole = values[: height * tile_height, : width * tile_width]
    tiles = whole.reshape(height, tile_height, width, tile_width)
    return tiles.mean(axis=(1, 3), dtype=np.float32).ravel()

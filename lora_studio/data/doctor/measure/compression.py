"""How much compression has taken away."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Sum of the luma table in annex K of the JPEG standard, ITU-T T.81, which is what the quality 50 means.
_STANDARD_SUM = 3688
_LARGEST_STEP = 16  # grey levels; larger ones are edges of things
_SEEN_STEP = 2
_LEAST_SEEN = 0.25  # share of places along block edges with a step; in drawings with flat areas there are few


def jpeg_quality(data: bytes) -> int | None:
    """1 to 100 from the quantisation table, as the Independent JPEG Group's program scales it; else None.

    Below 20 it is overstated, since the steps in a table end at 255.
    """
    try:
        with Image.open(BytesIO(data), formats=("JPEG",)) as picture:
            luma = picture.quantization.get(0)  # type: ignore[attr-defined]
    except Exception:  # not a JPEG; the picture itself was decoded before
        return None
    if not luma:
        return None
    scale = 100 * sum(luma) / _STANDARD_SUM
    return max(1, min(100, round((200 - scale) / 2 if scale <= 100 else 5000 / scale)))


def blockiness(luma: NDArray[np.float32]) -> float:
    """Steps at the edges of blocks of 8 pixels over those elsewhere, along the axis where that is less.

    [H, W] in 0..255; wherever the grid lies. 1.0 if there are too few steps to tell.
    """
    return min(_along(luma), _along(luma.T))


def _along(luma: NDArray[np.float32]) -> float:
    steps = np.abs(np.diff(luma, axis=1))
    steps = steps[:, : steps.shape[1] // 8 * 8]
    if steps.size == 0:
        return 1.0
    means = np.minimum(steps, _LARGEST_STEP).mean(axis=0).reshape(-1, 8).mean(axis=0)
    edge = int(means.argmax())
    if float((steps[:, edge::8] >= _SEEN_STEP).mean()) < _LEAST_SEEN:
        return 1.0
    return float(means[edge] / max(float(np.median(np.delete(means, edge))), 0.05))

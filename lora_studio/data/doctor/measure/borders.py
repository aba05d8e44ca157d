"""Bars and frames of one colour that are part of the image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SAME = 10.0  # grey levels within which a border's pixels lie; compression makes them differ a little
_LEAST_SHARE = 0.01  # of the side
_LEAST_PIXELS = 2
_EDGE_STEP = 24.0  # grey levels between border and content
_EDGE_SHARE = 0.5  # of the edge's length along which there is such a step
_EDGE_DEPTH = 8  # rows in which it is looked for; JPEG blurs an edge within a block
_EDGE_ROWS = 3  # that a straight edge takes; what bends needs more


@dataclass(frozen=True)
class Border:
    """Thickness in pixels; 0 where there is none."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    def __bool__(self) -> bool:
        return bool(self.left or self.top or self.right or self.bottom)


def find_border(luma: NDArray[np.uint8]) -> Border:
    """Bars of one colour on two opposite sides, or on all four, that end in a straight edge.

    [H, W]. A plain background behind a thing has no such edge, and is none.
    """
    top, bottom = _pair(luma)
    inside = luma[top : luma.shape[0] - bottom]
    left, right = _pair(inside.T)
    return Border(left, top, right, bottom)


def _pair(luma: NDArray[np.uint8]) -> tuple[int, int]:
    """Thickness of the bars above and below; both 0 unless there are two of one colour."""
    first, last = _bar(luma), _bar(luma[::-1])
    if not first or not last or first + last >= 0.9 * len(luma):
        return 0, 0
    same = abs(float(luma[0].mean()) - float(luma[-1].mean())) <= _SAME
    return (first, last) if same else (0, 0)


def _bar(luma: NDArray[np.uint8]) -> int:
    """Rows of one colour at the top, if there are enough and they end in an edge."""
    colour = float(np.median(luma[0]))
    rows = 0
    while rows < len(luma) and _is_plain(luma[rows], colour):
        rows += 1
    if rows < max(_LEAST_PIXELS, _LEAST_SHARE * len(luma)) or rows == len(luma):
        return 0
    beyond = np.abs(luma[rows : rows + _EDGE_DEPTH].astype(np.float32) - colour) > _EDGE_STEP
    begins = np.bincount(beyond.argmax(axis=0)[beyond.any(axis=0)], minlength=_EDGE_ROWS)  # columns by row
    straight = np.convolve(begins, np.ones(_EDGE_ROWS)).max() / luma.shape[1]
    return rows if straight >= _EDGE_SHARE else 0


def _is_plain(row: NDArray[np.uint8], colour: float) -> bool:
    return float((np.abs(row.astype(np.float32) - colour) <= _SAME).mean()) >= 0.99

"""Arithmetic on pixels: traces of enlarging and of JPEG, sharpness, and bars of one colour at the borders."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_WINDOW = 256  # pixels in one spectrum
_LOWEST = 0.19  # cycles a pixel: enlarged about five times; below that the image's own patterns lie
_JPEG_BLOCK = 8  # pixels
_LARGEST_BLOCK = 16
_LEAST_CHANGES = 12  # places where neighbouring columns differ, to call their spacing regular


def resampling_trace(luma: NDArray[np.float32]) -> float:
    """The strongest peak, over the median, in the spectrum of how much neighbouring pixels differ.

    [H, W] in 0..255. Pixels between the original ones are weighted means of these, so they differ less, and
    do so periodically (A. C. Gallagher, "Detection of linear and cubic interpolation in JPEG compressed
    images", 2005, with the first derivative besides the second, as that one shows a factor of exactly 2).
    Peaks that the 8x8 blocks of JPEG make are taken off. 0 if the image is too small.
    """
    size = min(_WINDOW, (min(luma.shape) - 10) // _JPEG_BLOCK * _JPEG_BLOCK)
    if size < 32:
        return 0.0
    return max(_peak(luma, order, size) for order in (1, 2))


def _peak(luma: NDArray[np.float32], order: int, size: int) -> float:
    spectrum = sum(
        _spectrum(np.log1p(np.abs(np.diff(turned, n=order, axis=1))).mean(axis=0), size)
        for turned in (luma, luma.T)
    )
    assert not isinstance(spectrum, int)
    frequencies = np.fft.rfftfreq(size)
    spectrum = spectrum / max(_median(spectrum[frequencies > 0.1]), 1e-9)
    # Blocks of 8 pixels have peaks of one height at every eighth; what 1/4 and 1/2 have beyond it stays.
    eighth = size // _JPEG_BLOCK
    of_blocks = max(1.0, spectrum[eighth], spectrum[3 * eighth])
    for multiple in (1, 2, 3, 4):
        nearby = slice(multiple * eighth - 1, multiple * eighth + 2)
        spectrum[nearby] = spectrum[nearby] / of_blocks if multiple in (2, 4) else 0.0
    return float(spectrum[frequencies >= _LOWEST].max())


def _spectrum(profile: NDArray[np.float32], size: int) -> NDArray[np.float64]:
    """Mean magnitude over half overlapping windows, after the slow changes are taken out."""
    padded = np.concatenate([np.full(4, profile[0]), profile, np.full(4, profile[-1])])
    rest = profile - np.convolve(padded, np.full(9, 1 / 9), "valid")
    windows = [rest[start : start + size] for start in range(0, len(rest) - size + 1, size // 2)]
    return np.abs(np.fft.rfft(np.array(windows) * _hanning(size))).mean(axis=0)


def _median(values: NDArray[Any]) -> float:
    """As numpy's of a line, of which that of few numbers takes most of the time that a small image does."""
    middle = (len(values) - 1) // 2, len(values) // 2
    parted = np.partition(values, middle)
    return float(parted[middle[0]] + parted[middle[1]]) / 2


@cache
def _hanning(size: int) -> NDArray[np.float64]:
    return np.hanning(size + 1)[:-1]


def pixel_block(luma: NDArray[np.float32]) -> int:
    """The side of the squares of equal pixels that the whole image consists of; 1 if it does not.

    [H, W]; what enlarging without interpolation makes.
    """
    sides = [_spacing(luma), _spacing(luma.T)]
    return sides[0] if sides[0] == sides[1] else 1


def _spacing(luma: NDArray[np.float32]) -> int:
    """The largest spacing in which all columns stand, from the first one, that differ from the one before."""
    changes = np.flatnonzero((luma[:, 1:] != luma[:, :-1]).any(axis=0))
    if len(changes) < _LEAST_CHANGES:
        return 1
    shared = int(np.gcd.reduce(np.diff(changes)))
    return next(spacing for spacing in range(_LARGEST_BLOCK, 0, -1) if shared % spacing == 0)


# Sum of the luma table in annex K of the JPEG standard, ITU-T T.81, which is what the quality 50 means.
_STANDARD_SUM = 3688
_LARGEST_STEP = 16  # grey levels; larger ones are edges of things
_SEEN_STEP = 2
# Share of steps along block edges with none beside them: 1 in pixel art; of JPEG up to 0.5, above quality 3.
_MOST_CLEAN = 0.65
_BOTH_SIDES = 0.9  # a line of a pixel's width has a step on both of its sides, the edge of a block has one
_LEAST_SEEN = 0.25  # share of places along block edges with a step; in drawings with flat areas there are few


def jpeg_quality(luma_table: Sequence[int] | None) -> int | None:
    """1 to 100 from the quantisation table, as the Independent JPEG Group's program scales it; else None.

    Below 20 it is overstated, since the steps in a table end at 255.
    """
    if not luma_table:
        return None
    scale = 100 * sum(luma_table) / _STANDARD_SUM
    return max(1, min(100, round((200 - scale) / 2 if scale <= 100 else 5000 / scale)))


def blockiness(luma: NDArray[np.float32]) -> float:
    """Steps at the edges of blocks of 8 pixels over those elsewhere, along the axis where that is less.

    [H, W] in 0..255; wherever the grid lies. 1.0 if there are too few steps to tell.
    """
    return min(_along(luma), _along(luma.T))


def _along(luma: NDArray[np.float32]) -> float:
    steps = np.abs(np.diff(luma, axis=1))
    steps = steps[:, : steps.shape[1] // _JPEG_BLOCK * _JPEG_BLOCK]
    if steps.size == 0:
        return 1.0
    means = np.minimum(steps, _LARGEST_STEP).mean(axis=0).reshape(-1, _JPEG_BLOCK).mean(axis=0)
    edge = int(means.argmax())
    if float((steps[:, edge::_JPEG_BLOCK] >= _SEEN_STEP).mean()) < _LEAST_SEEN:
        return 1.0
    first = edge or _JPEG_BLOCK
    before, at, behind = (steps[:, first + one : -1 : _JPEG_BLOCK] for one in (-1, 0, 1))
    width = behind.shape[1]
    seen = at[:, :width] >= _SEEN_STEP
    clean = seen & (before[:, :width] == 0) & (behind == 0)
    others = np.delete(means, edge)
    if clean.sum() > _MOST_CLEAN * seen.sum() or others.max() > _BOTH_SIDES * means[edge]:
        return 1.0
    return float(means[edge] / max(float(np.median(others)), 0.05))


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
    """Means over tiles, flat; an image smaller than a tile is one."""
    height, width = (max(1, side // _TILE) for side in values.shape)
    tile_height, tile_width = (min(side, _TILE) for side in values.shape)
    whole = values[: height * tile_height, : width * tile_width]
    tiles = whole.reshape(height, tile_height, width, tile_width)
    return tiles.mean(axis=(1, 3), dtype=np.float32).ravel()


_SAME = 10.0  # grey levels within which a border's pixels lie; compression makes them differ a little
_LEAST_SHARE = 0.01  # of the side
_LEAST_PIXELS = 2
_EDGE_STEP = 24.0  # grey levels between border and content
_EDGE_SHARE = 0.5  # of the edge's length along which there is such a step
_EDGE_DEPTH = 8  # rows in which it is looked for; JPEG blurs an edge within a block
_EDGE_ROWS = 3  # that a straight edge takes; what bends needs more


class Border(NamedTuple):
    """Thickness in pixels; 0 where there is none."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    def __bool__(self) -> bool:
        return any(self)


def may_have_border(image: Image.Image) -> bool:
    """Whether two opposite edges of an RGB image are of one colour; else `find_border` finds none."""
    width, height = image.size

    def is_plain(left: int, top: int, right: int, bottom: int) -> bool:
        return _is_plain(np.asarray(image.crop((left, top, right, bottom)).convert("L"), np.float32).ravel())

    across = is_plain(0, 0, width, 1) and is_plain(0, height - 1, width, height)
    return across or (is_plain(0, 0, 1, height) and is_plain(width - 1, 0, width, height))


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


def _is_plain(line: NDArray[np.float32], colour: float | None = None) -> bool:
    """Whether nearly all of a row or column is of the colour, or of its own median."""
    colour = _median(line) if colour is None else colour
    same = np.count_nonzero(np.abs(line - np.float32(colour)) <= _SAME)
    return bool(same >= 0.99 * len(line))


def _bar(luma: NDArray[np.uint8]) -> int:
    """Rows of one colour at the top, if there are enough and they end in an edge."""
    colour = float(np.median(luma[0]))
    rows = 0
    while rows < len(luma) and _is_plain(luma[rows].astype(np.float32), colour):
        rows += 1
    if rows < max(_LEAST_PIXELS, _LEAST_SHARE * len(luma)) or rows == len(luma):
        return 0
    beyond = np.abs(luma[rows : rows + _EDGE_DEPTH].astype(np.float32) - colour) > _EDGE_STEP
    begins = np.bincount(beyond.argmax(axis=0)[beyond.any(axis=0)], minlength=_EDGE_ROWS)  # columns by row
    straight = np.convolve(begins, np.ones(_EDGE_ROWS)).max() / luma.shape[1]
    return rows if straight >= _EDGE_SHARE else 0

"""Traces of enlarging: pixels that were computed from fewer ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_WINDOW = 256  # pixels in one spectrum
_LOWEST = 0.19  # cycles a pixel: enlarged about five times; below that the picture's own patterns lie
_LARGEST_BLOCK = 16
_LEAST_CHANGES = 12  # places where neighbouring columns differ, to call their spacing regular


def resampling_trace(luma: NDArray[np.float32]) -> float:
    """The strongest peak, over the median, in the spectrum of how much neighbouring pixels differ.

    [H, W] in 0..255. Pixels between the original ones are weighted means of these, so they differ less, and
    do so periodically (A. C. Gallagher, "Detection of linear and cubic interpolation in JPEG compressed
    images", 2005, with the first derivative besides the second, as that one shows a factor of exactly 2).
    Peaks that the 8x8 blocks of JPEG make are taken off. 0 if the picture is too small.
    """
    size = min(_WINDOW, (min(luma.shape) - 10) // 8 * 8)
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
    spectrum = spectrum / max(float(np.median(spectrum[frequencies > 0.1])), 1e-9)
    return float(_without_blocks(spectrum, size)[frequencies >= _LOWEST].max())


def _spectrum(profile: NDArray[np.float32], size: int) -> NDArray[np.float64]:
    """Mean magnitude over half overlapping windows, after the slow changes are taken out."""
    smooth = np.convolve(np.pad(profile, 4, mode="edge"), np.full(9, 1 / 9), "valid")
    rest, window = profile - smooth, np.hanning(size + 1)[:-1]
    starts = range(0, len(rest) - size + 1, size // 2)
    return np.mean([np.abs(np.fft.rfft(rest[start : start + size] * window)) for start in starts], axis=0)


def _without_blocks(spectrum: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Blocks of 8 pixels have peaks of one height at every eighth; what 1/4 and 1/2 have beyond it stays."""
    eighth, cleaned = size // 8, spectrum.copy()
    of_blocks = max(1.0, spectrum[eighth], spectrum[3 * eighth])
    for multiple in (1, 2, 3, 4):
        nearby = slice(multiple * eighth - 1, multiple * eighth + 2)
        cleaned[nearby] = cleaned[nearby] / of_blocks if multiple in (2, 4) else 0.0
    return cleaned


def pixel_block(luma: NDArray[np.float32]) -> int:
    """The side of the squares of equal pixels that the whole picture consists of; 1 if it does not.

    [H, W]; what enlarging without interpolation makes.
    """
    sides = [_spacing(luma), _spacing(luma.T)]
    return sides[0] if sides[0] == sides[1] else 1


def _spacing(luma: NDArray[np.float32]) -> int:
    """The largest spacing of which all places are multiples where a column differs from the one before."""
    changes = np.flatnonzero((luma[:, 1:] != luma[:, :-1]).any(axis=0))
    if len(changes) < _LEAST_CHANGES:
        return 1
    for spacing in range(_LARGEST_BLOCK, 1, -1):
        if len(set((changes % spacing).tolist())) == 1:
            return spacing
    return 1

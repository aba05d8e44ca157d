"""Which images look the same, be they scaled, saved again, a little cropped or brightened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_BITS = 8  # of 63 that may differ
LEAST_CORRELATION = 0.95  # of the small images
_SMALL, _HASHED = 16, 32
_COSINES = np.cos(np.pi * np.outer(np.arange(8), 2 * np.arange(_HASHED) + 1) / (2 * _HASHED))
_BITS = np.array([number.bit_count() for number in range(1 << 16)], np.uint8)  # set in 16-bit numbers


@dataclass(frozen=True)
class Likeness:
    """A perceptual hash, also of the mirrored image, and the image in very small."""

    hash: int  # 63 bits
    mirrored: int
    small: bytes  # 16 x 16 x 3


@dataclass(frozen=True)
class Pair:
    """Two that look the same, as positions in what was compared; `first` < `second`."""

    first: int
    second: int
    bits: int  # in how many of 63 their hashes differ
    mirrored: bool


def likeness(image: Image.Image) -> Likeness:
    """Of an RGB image."""
    small = image.resize((_SMALL, _SMALL), Image.Resampling.BOX, reducing_gap=2)
    grey = image.convert("L").resize((_HASHED, _HASHED), Image.Resampling.LANCZOS, reducing_gap=3)
    luma = np.asarray(grey, np.float64)
    return Likeness(_hash(luma), _hash(luma[:, ::-1]), small.tobytes())


def similar_pairs(looks: Sequence[Likeness]) -> Iterator[Pair]:
    """Each with the first one before it that it looks like, if there is one."""
    hashes = np.array([look.hash for look in looks], np.uint64)
    for second, look in enumerate(looks):
        pair = _first_like(looks, hashes[:second], second, look)
        if pair is not None:
            yield pair


def _first_like(
    looks: Sequence[Likeness], before: NDArray[np.uint64], second: int, look: Likeness
) -> Pair | None:
    for mirrored, wanted in ((False, look.hash), (True, look.mirrored)):
        bits = _differing_bits(before, wanted)
        for first in np.flatnonzero(bits <= MAX_BITS).tolist():
            if _correlation(looks[first], look, mirrored=mirrored) >= LEAST_CORRELATION:
                return Pair(first, second, int(bits[first]), mirrored)
    return None


def _hash(luma: NDArray[np.float64]) -> int:
    """Signs, against their median, of the 63 lowest waves of the cosine transform but the mean."""
    waves = (_COSINES @ luma @ _COSINES.T).ravel()[1:]
    return sum(1 << place for place in np.flatnonzero(waves > np.median(waves)).tolist())


def _differing_bits(hashes: NDArray[np.uint64], wanted: int) -> NDArray[np.uint8]:
    differing = (hashes ^ np.uint64(wanted)).view(np.uint16).reshape(-1, 4)
    first, second, third, fourth = _BITS[differing].T
    return first + second + third + fourth


def _correlation(one: Likeness, other: Likeness, *, mirrored: bool) -> float:
    """Of the small images' pixels, colours by colour around their own means; -1 to 1."""
    first, second = (_small(look) for look in (one, other))
    if mirrored:
        second = second[:, ::-1]
    first, second = (pixels - pixels.mean(axis=(0, 1)) for pixels in (first, second))
    size = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / size) if size else 0.0


def _small(look: Likeness) -> NDArray[np.float64]:
    return np.frombuffer(look.small, np.uint8).reshape(_SMALL, _SMALL, 3).astype(np.float64)

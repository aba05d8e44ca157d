"""Which images look the same: a perceptual hash, compared with all others, and the image in very small."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lora_studio.data.images.threads import in_threads

MAX_BITS = 8  # of 63 that may differ
LEAST_CORRELATION = 0.95  # of the small images
_SMALL, _HASHED = 16, 32
_COSINES = np.cos(np.pi * np.outer(np.arange(8), 2 * np.arange(_HASHED) + 1) / (2 * _HASHED))
_BIT = 1 << np.arange(63, dtype=np.uint64)
_ROWS = 64  # compared by a thread at a time
_AT_ONCE = 64  # small images, of 18 kB as numbers, that are compared with one


@dataclass(frozen=True, slots=True)
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
    """Each with the first one before it that it looks like, if there is one.

    Every two hashes are compared, a row of all earlier ones at a time: 16,000 images take 0.3 processor
    seconds, which grows with the square of their number, and no more memory than a few rows.
    """
    hashes = np.array([look.hash for look in looks], np.uint64)

    def of_rows(seconds: range) -> list[Pair]:
        pairs = (_first_alike(looks, hashes[:second], looks[second]) for second in seconds)
        return [pair for pair in pairs if pair]

    every = range(len(looks))
    for some in in_threads(of_rows, (every[start : start + _ROWS] for start in every[::_ROWS])):
        yield from some


def _first_alike(looks: Sequence[Likeness], before: NDArray[np.uint64], look: Likeness) -> Pair | None:
    """The pair of the image that comes after those whose hashes are `before`."""
    for mirrored, wanted in ((False, look.hash), (True, look.mirrored)):
        bits = np.bitwise_count(before ^ np.uint64(wanted))
        near = np.flatnonzero(bits <= MAX_BITS)
        for start in range(0, len(near), _AT_ONCE):
            some = near[start : start + _AT_ONCE]
            like = _correlations([looks[first] for first in some], look, mirrored=mirrored)
            if len(found := np.flatnonzero(like >= LEAST_CORRELATION)):
                first = int(some[found[0]])
                return Pair(first, len(before), int(bits[first]), mirrored)
    return None


def _hash(luma: NDArray[np.float64]) -> int:
    """Signs, against their median, of the 63 lowest waves of the cosine transform but the mean."""
    waves = (_COSINES @ luma @ _COSINES.T).ravel()[1:]
    return int(_BIT[waves > np.median(waves)].sum(dtype=np.uint64))


def _correlations(many: Sequence[Likeness], one: Likeness, *, mirrored: bool) -> NDArray[np.float64]:
    """Of the small images' pixels, colour by colour around their own means; -1 to 1, 0 for a plain one."""
    shape = (-1, _SMALL, _SMALL, 3)
    pixels = np.frombuffer(b"".join([look.small for look in (one, *many)]), np.uint8).reshape(shape) * 1.0
    pixels -= pixels.mean(axis=(1, 2), keepdims=True)
    if mirrored:
        pixels[0] = pixels[0, :, ::-1].copy()
    flat = pixels.reshape(len(pixels), -1)
    sizes = np.sqrt((flat**2).sum(axis=1))
    products = (flat[1:] * flat[0]).sum(axis=1)
    return np.divide(products, sizes[1:] * sizes[0], out=np.zeros(len(many)), where=sizes[1:] * sizes[0] > 0)

"""What is measured in an image's pixels and file, one image at a time, and which images look the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lora_studio.data.doctor.measure import (
    Border,
    blockiness,
    edge_width,
    find_border,
    jpeg_quality,
    pixel_block,
    resampling_trace,
)
from lora_studio.data.images.decode import reopen
from lora_studio.data.manifest import Manifest, Record
from lora_studio.families.text_chunks import Tokenizer

_LEAST_CONTRAST = 1.0  # a plain image looks like every other one
_WINDOW = 512  # pixels; of larger images the middle is searched for traces of what was done to them


@dataclass(frozen=True)
class Look:
    """One image's measurements."""

    likeness: Likeness
    contrast: float  # standard deviation of the luma, 0 to 128
    edge_width: float  # pixels, of the sharpest parts at the size that is trained; inf: there are no edges
    trace: float  # how strongly pixels repeat a pattern as of enlarging; about 2 to 4 if there was none
    pixel_block: int  # side of the squares of equal pixels that the image consists of; 1 usually
    jpeg_quality: int | None  # 1 to 100 as the JPEG group's program counts; None: not a JPEG
    blockiness: float  # steps at the edges of 8x8 blocks over those inside; about 1 without
    border: Border


@dataclass(frozen=True)
class Requirements:
    """What a base and a recipe ask of images and captions."""

    resolution: int  # side in pixels of a square of the area asked for
    stride: int  # of the sides of buckets
    tokenizers: Mapping[str, Tokenizer]
    max_chunks: int = 1  # windows of the text encoders that a caption may fill


@dataclass(frozen=True)
class Case:
    """All that checks may look at."""

    manifest: Manifest  # with buckets, and with captions where there are some
    looks: Mapping[str, Look]  # by name, of every usable image
    requirements: Requirements
    faults: Sequence[str] = ()  # sentences about what else would stop a training
    written: Mapping[str, Sequence[str]] = field(default_factory=dict)  # name -> captions, if not as recorded

    def captions(self, record: Record) -> Sequence[str]:
        """What training may show the image with."""
        return self.written.get(record.name) or record.lines or (record.caption,)

    @property
    def seen(self) -> Iterator[tuple[Record, Look]]:
        return ((record, self.looks[record.name]) for record in self.manifest.usable)

    @cached_property
    def alike(self) -> list[tuple[Record, Record, Pair]]:
        """Images that look the same; validation images first, so that every other is compared with them."""
        ordered = sorted(self.seen, key=lambda one: one[0].role != "validation")
        seen = [(record, look) for record, look in ordered if look.contrast >= _LEAST_CONTRAST]
        pairs = similar_pairs([look.likeness for _, look in seen])
        return [(seen[pair.first][0], seen[pair.second][0], pair) for pair in pairs]


def grouped(records: Iterable[Record], field: str) -> dict[str, list[Record]]:
    """By the text in a field of theirs, in the order of the first of each."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[getattr(record, field)].append(record)
    return groups


def look_at(
    records: Sequence[Record], on_progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Look]:
    """Name -> measurements, one image in memory at a time. Raises DatasetError if a file has changed."""
    looks = {}
    for done, record in enumerate(records, start=1):
        background = record.background or "white"
        decoded, data = reopen(record.path, record.sha256, background=background)
        looks[record.name] = _look(decoded.image, data, record)
        on_progress(done, len(records))
    return looks


def _look(image: Image.Image, data: bytes, record: Record) -> Look:
    luma = shrunk = image.convert("L")
    width, height = record.resize or luma.size
    if width < luma.width and height < luma.height:  # a smaller one stays, since enlarging adds no detail
        shrunk = luma.resize((width, height), Image.Resampling.LANCZOS)
    trained = np.asarray(shrunk, np.float32)
    width, height = min(luma.width, _WINDOW), min(luma.height, _WINDOW)
    left, top = (luma.width - width) // 2, (luma.height - height) // 2
    middle = np.asarray(luma.crop((left, top, left + width, top + height)), np.float32)
    return Look(
        likeness=likeness(image),
        contrast=float(np.std(trained)),
        edge_width=edge_width(trained),
        trace=resampling_trace(middle),
        pixel_block=pixel_block(middle),
        jpeg_quality=jpeg_quality(data),
        blockiness=blockiness(middle),
        border=find_border(np.asarray(luma)),
    )


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
    for second in range(len(looks)):
        yield from islice(_pairs(looks, hashes[:second]), 1)


def _pairs(looks: Sequence[Likeness], before: NDArray[np.uint64]) -> Iterator[Pair]:
    """Of the image after those whose hashes are `before`."""
    look = looks[len(before)]
    for mirrored, wanted in ((False, look.hash), (True, look.mirrored)):
        differing = (before ^ np.uint64(wanted)).view(np.uint16).reshape(-1, 4)
        first_16, second_16, third_16, fourth_16 = _BITS[differing].T
        bits = first_16 + second_16 + third_16 + fourth_16
        for first in np.flatnonzero(bits <= MAX_BITS).tolist():
            if _correlation(looks[first], look, mirrored=mirrored) >= LEAST_CORRELATION:
                yield Pair(first, len(before), int(bits[first]), mirrored)


def _hash(luma: NDArray[np.float64]) -> int:
    """Signs, against their median, of the 63 lowest waves of the cosine transform but the mean."""
    waves = (_COSINES @ luma @ _COSINES.T).ravel()[1:]
    return sum(1 << place for place in np.flatnonzero(waves > np.median(waves)).tolist())


def _correlation(one: Likeness, other: Likeness, *, mirrored: bool) -> float:
    """Of the small images' pixels, colours by colour around their own means; -1 to 1."""
    shape = (_SMALL, _SMALL, 3)
    first, second = (np.frombuffer(look.small, np.uint8).reshape(shape) * 1.0 for look in (one, other))
    if mirrored:
        second = second[:, ::-1]
    first, second = (pixels - pixels.mean(axis=(0, 1)) for pixels in (first, second))
    size = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / size) if size else 0.0

"""What is measured in an image's pixels and file, one image at a time, and which images look the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lora_studio.data.buckets import trained_size
from lora_studio.data.doctor.likeness import Likeness, Pair, likeness, similar_pairs
from lora_studio.data.doctor.measure import (
    Border,
    blockiness,
    edge_width,
    find_border,
    jpeg_quality,
    may_have_border,
    pixel_block,
    resampling_trace,
)
from lora_studio.data.images.decode import MAX_PIXELS, DecodedImage, reopen, reopen_luma
from lora_studio.data.images.threads import in_threads
from lora_studio.data.manifest import Manifest, Record
from lora_studio.families.text_chunks import Tokenizer
from lora_studio.recipe.data import MOST_CHUNKS, DataConfig

_LEAST_CONTRAST = 1.0  # a plain image looks like every other one
SOMEWHAT_SOFT = 0.55  # edge width from which traces of enlarging are looked for
_WINDOW = 512  # pixels; of larger images the middle is searched for traces of what was done to them
_NO_BORDER = Border()  # one for all
_REDUCING_GAP = 1.5  # edge widths come within 5 % of those through LANCZOS alone


@dataclass(frozen=True, slots=True)
class Look:
    """One image's measurements."""

    trained_size: tuple[int, int]  # to which it is resized for training
    likeness: Likeness
    contrast: float  # standard deviation of the luma, 0 to 128
    edge_width: float  # pixels, of the sharpest parts at the size that is trained; inf: there are no edges
    trace: float  # how strongly pixels repeat a pattern as of enlarging; 2 to 4 without; 0: it is sharp
    pixel_block: int  # side of the squares of equal pixels that the image consists of; 1 usually
    jpeg_quality: int | None  # 1 to 100 as the JPEG group's program counts; None: not a JPEG
    blockiness: float  # steps at the edges of 8x8 blocks over those inside; about 1 without, 1 for a JPEG
    border: Border


@dataclass(frozen=True)
class Requirements:
    """What a base and a recipe ask of images and captions."""

    resolution: int  # side in pixels of a square of the area asked for
    stride: int  # of the sides of buckets
    tokenizers: Mapping[str, Tokenizer]
    max_chunks: int = 1  # windows of the text encoders that a caption may fill
    most_chunks: int = MOST_CHUNKS  # that a recipe may allow
    wildcards: bool = False  # one of the words in {a|b} is drawn
    prompts: Sequence[tuple[str, str]] = ()  # of previews and drawn images: a recipe's key, and its text
    base_notes: Sequence[str] = ()  # what the base's user should know


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


class Looks:
    """Images measured while a scan decodes them, as what is trained with `data` and `stride`.

    Images that no scan showed are read again when they are asked for. Safe for several threads.
    """

    def __init__(self, data: DataConfig, stride: int) -> None:
        self._data, self._stride = data, stride
        self._by_content: dict[str, Look] = {}

    @property
    def enough_pixels(self) -> int:
        """A JPEG of more may be decoded smaller: twice the sides that are trained, and something to crop."""
        return 5 * self._data.resolution**2

    def take(self, record: Record, decoded: DecodedImage) -> None:
        """See an image as `scan` gives it, with its role."""
        if size := trained_size(record, self._data, self._stride):
            self._by_content[_shown(record)] = look(decoded, record, size)

    def of(
        self, records: Sequence[Record], on_progress: Callable[[int, int], None] = lambda done, total: None
    ) -> dict[str, Look]:
        """Name -> measurements of placed records, which are then forgotten here.

        Raises DatasetError if a file that is read has changed.
        """
        looks = {record.name: self._by_content.get(_shown(record)) for record in records}
        self._by_content.clear()
        missing = [one for one in records if not _fits(looks[one.name], one)]
        for done, (record, seen) in enumerate(zip(missing, in_threads(_look_again, missing), strict=True), 1):
            looks[record.name] = seen
            on_progress(done, len(missing))
        return {name: seen for name, seen in looks.items() if seen}


def _shown(record: Record) -> str:
    """What is seen of an image: its bytes, before a background if parts of it are clear."""
    return record.sha256 + record.background


def _fits(seen: Look | None, record: Record) -> bool:
    return seen is not None and seen.trained_size == (record.resize or (record.width, record.height))


def _look_again(record: Record) -> Look:
    return look(_whole(record), record, record.resize or (record.width, record.height))


def _whole(record: Record) -> DecodedImage:
    return reopen(record.path, record.sha256, background=record.background or "white")


def look(decoded: DecodedImage, record: Record, trained_size: tuple[int, int]) -> Look:
    """The measurements of an image, which is decoded again where fewer pixels than its own would mislead.

    Of one with too many pixels to be decoded whole, those of its reduced image.
    """
    spare = min(side / trained for side, trained in zip(decoded.image.size, trained_size, strict=True))
    may_be_whole = decoded.shrunk > 1 and decoded.size[0] * decoded.size[1] <= MAX_PIXELS
    if may_be_whole and spare < 2:
        return look(_whole(record), record, trained_size)
    reduced, luma = _as_trained(decoded.image, trained_size)
    width = edge_width(luma)
    is_soft = SOMEWHAT_SOFT < width < float("inf")
    has_border = may_have_border(decoded.image)
    image, shrunk = decoded.image, decoded.shrunk
    if may_be_whole and (is_soft or has_border):
        image, shrunk = reopen_luma(record.path, record.sha256), 1
    middle = _middle(image)
    block, quality = pixel_block(middle), jpeg_quality(decoded.luma_table)
    border = find_border(np.asarray(image.convert("L"))) if has_border else _NO_BORDER
    return Look(
        trained_size=trained_size,
        likeness=likeness(reduced),
        contrast=float(np.std(luma)),
        edge_width=width,
        trace=resampling_trace(middle) if is_soft else 0.0,
        pixel_block=block * shrunk if block > 1 else 1,
        jpeg_quality=quality,
        blockiness=blockiness(middle) if quality is None else 1.0,
        border=Border(*(shrunk * pixels for pixels in border)) if border else _NO_BORDER,
    )


def _as_trained(image: Image.Image, size: tuple[int, int]) -> tuple[Image.Image, NDArray[np.float32]]:
    """The image made smaller by whole numbers, and its luma at the size, [H, W] in 0..255.

    A smaller image stays as large as it is, since enlarging adds no detail.
    """
    if image.width <= size[0] or image.height <= size[1]:
        return image, np.asarray(image.convert("L"), np.float32)
    factors = [
        max(1, int(side / wanted / _REDUCING_GAP)) for side, wanted in zip(image.size, size, strict=True)
    ]
    reduced = image.reduce((factors[0], factors[1])) if max(factors) > 1 else image
    luma = reduced.convert("L").resize(size, Image.Resampling.LANCZOS)
    return reduced, np.asarray(luma, np.float32)


def _middle(image: Image.Image) -> NDArray[np.float32]:
    """Its luma, [H, W] in 0..255."""
    width, height = min(image.width, _WINDOW), min(image.height, _WINDOW)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return np.asarray(image.crop((left, top, left + width, top + height)).convert("L"), np.float32)

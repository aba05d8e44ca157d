"""What is measured in an image's pixels and file, one image at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lora_studio.data.doctor.measure.borders import Border, find_border
from lora_studio.data.doctor.measure.detail import (
    blockiness,
    edge_width,
    jpeg_quality,
    pixel_block,
    resampling_trace,
)
from lora_studio.data.doctor.measure.likeness import Likeness, Pair, likeness, similar_pairs
from lora_studio.data.images.decode import reopen_with_bytes
from lora_studio.data.manifest import Record
from lora_studio.families.text_chunks import Tokenizer

_LEAST_CONTRAST = 1.0  # a plain image looks like every other one
_WINDOW = 512  # pixels; of larger images the middle is searched for traces of what was done to them


@dataclass(frozen=True)
class Look:
    """One image's measurements."""

    likeness: Likeness
    contrast: float  # standard deviation of the luma, 0 to 128
    edge_width: float  # pixels, of the sharpest parts at the size that is trained; inf: there are no edges
    trace: (
        float  # how strongly pixels repeat a pattern as if computed from fewer; about 2 to 4 if they are not
    )
    pixel_block: int  # side of the squares of equal pixels that the image consists of; 1 usually
    jpeg_quality: int | None  # 1 to 100 as the JPEG group's program counts; None: not a JPEG
    blockiness: float  # steps at the edges of 8x8 blocks over those inside; about 1 without
    border: Border


@dataclass(frozen=True)
class Case:
    """All that checks may look at."""

    records: Sequence[Record]  # everything found, with buckets and with captions where there are some
    looks: Mapping[str, Look]  # by name, of every usable image
    tokenizers: Mapping[str, Tokenizer]
    resolution: int  # side in pixels of a square of the area asked for
    faults: Sequence[str] = ()  # sentences about what else would stop a training
    written: Mapping[str, Sequence[str]] = field(default_factory=dict)  # name -> captions, if not as recorded
    max_chunks: int = 1  # windows of the text encoders that a caption may fill

    @property
    def usable(self) -> list[Record]:
        """The images that are not excluded, in whatever role."""
        return [record for record in self.records if not record.excluded]

    @property
    def trained(self) -> list[Record]:
        """The images that are trained on."""
        return [record for record in self.usable if record.role == "instance"]

    def captions(self, record: Record) -> Sequence[str]:
        """What training may show the image with."""
        return self.written.get(record.name) or record.lines or (record.caption,)

    def seen(self, records: Sequence[Record]) -> Iterator[tuple[Record, Look]]:
        """Those of the records that were looked at, with what was seen."""
        return ((record, self.looks[record.name]) for record in records if record.name in self.looks)

    @cached_property
    def alike(self) -> list[tuple[Record, Record, Pair]]:
        """Images that look the same; held-out ones first, so that every other is compared with them."""
        ordered = sorted(self.seen(self.usable), key=lambda one: one[0].role != "validation")
        seen = [(record, look) for record, look in ordered if look.contrast >= _LEAST_CONTRAST]
        pairs = similar_pairs([look.likeness for _, look in seen])
        return [(seen[pair.first][0], seen[pair.second][0], pair) for pair in pairs]


def look_at(
    records: Sequence[Record], on_progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Look]:
    """Name -> measurements, one image in memory at a time. Raises DatasetError if a file has changed."""
    looks = {}
    for done, record in enumerate(records, start=1):
        looks[record.name] = _look(record)
        on_progress(done, len(records))
    return looks


def _look(record: Record) -> Look:
    decoded, data = reopen_with_bytes(record.path, record.sha256, background=record.background or "white")
    image = decoded.image
    luma = image.convert("L")
    middle = _middle(luma)
    trained = _as_trained(luma, record)
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


def _as_trained(luma: Image.Image, record: Record) -> NDArray[np.float32]:
    """[H, W] at the size of the bucket; a smaller image as it is, since enlarging adds no detail."""
    width, height = record.resize or luma.size
    if width < luma.width and height < luma.height:
        luma = luma.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(luma, np.float32)


def _middle(luma: Image.Image) -> NDArray[np.float32]:
    """[H, W], at most a window of its middle."""
    left, top = max(0, (luma.width - _WINDOW) // 2), max(0, (luma.height - _WINDOW) // 2)
    return np.asarray(
        luma.crop((left, top, left + min(luma.width, _WINDOW), top + min(luma.height, _WINDOW))), np.float32
    )

"""Where in a resized image the crop lies: in the middle, around a point, or at several places by chance."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lora_studio.data.manifest import Bucket, CropMode, Record
from lora_studio.data.masks import Subject
from lora_studio.rng import python_random

CropBox = tuple[int, int, int, int]  # left, top, right, bottom in pixels
Span = tuple[float, float]


@dataclass(frozen=True)
class Cover:
    """An image that was resized so that it just covers a bucket."""

    bucket: Bucket
    resize: tuple[int, int]  # width, height of the whole image
    frame: CropBox  # what of it may be shown; at least as large as the bucket


def crop_boxes(
    record: Record, cover: Cover, *, mode: CropMode, count: int, subject: Subject | None = None
) -> list[CropBox]:
    """The crops of an image: boxes of the bucket's size within the frame, all different.

    centre: one in the middle of the frame; focus: one around the point that the record's overrides give, else
    around the centre of mass of its mask, else in the middle; random: up to `count`. Those are keyed by the
    image's content, so that every run finds them in the cache, and hold the white part of its mask, or lie
    within it where it is larger.
    """
    if mode == "random":
        return _random_boxes(record, cover, count, subject)
    bucket, (left, top, right, bottom) = cover.bucket, cover.frame
    point = None
    if mode == "focus":
        point = record.overrides.focus or (subject.centre if subject else None)
    if point is None:
        x, y = (left + right) / 2, (top + bottom) / 2
    else:
        x, y = point[0] * cover.resize[0], point[1] * cover.resize[1]
    start = _within(math.floor(x - bucket.width / 2), left, right - bucket.width)
    return [_box(start, _within(math.floor(y - bucket.height / 2), top, bottom - bucket.height), bucket)]


def _random_boxes(record: Record, cover: Cover, count: int, subject: Subject | None) -> list[CropBox]:
    bucket, (width, height) = cover.bucket, cover.resize
    across = down = None
    if subject is not None:
        left, top, right, bottom = subject.box
        across, down = (left * width, right * width), (top * height, bottom * height)
    lefts = _starts(cover.frame[0], cover.frame[2], bucket.width, across)
    tops = _starts(cover.frame[1], cover.frame[3], bucket.height, down)
    number = len(lefts) * len(tops)
    places = python_random(record.sha256, bucket.name, "crops").sample(range(number), min(count, number))
    return [_box(lefts[place % len(lefts)], tops[place // len(lefts)], bucket) for place in places]


def _starts(start: int, end: int, side: int, span: Span | None) -> range:
    """Where a crop of this side may begin between start and end, with the span in it, or it in the span."""
    first, last = start, end - side
    if span is not None:
        low, high = sorted((math.floor(span[0]), math.ceil(span[1]) - side))
        first, last = _within(low, first, last), _within(high, first, last)
    return range(first, last + 1)


def _within(value: int, lowest: int, highest: int) -> int:
    return max(lowest, min(value, highest))


def _box(left: int, top: int, bucket: Bucket) -> CropBox:
    return left, top, left + bucket.width, top + bucket.height

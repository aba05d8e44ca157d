"""Every image's bucket and the ways it is shown: at several areas, in several crops, mirrored."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from lora_studio.data.buckets.sizes import fit, largest_bucket, within
from lora_studio.data.manifest import Bucket, CropMode, Manifest, Record, View
from lora_studio.data.masks import Subject, subject
from lora_studio.errors import DatasetError, preview_names
from lora_studio.recipe.data import DataConfig
from lora_studio.rng import python_random


def assign(manifest: Manifest, data: DataConfig, *, stride: int) -> Manifest:
    """The manifest with bucket, resize and crop in every used record, and all further views of it.

    What is not trained on is shown in one way only. Images too small for the smallest bucket are excluded.
    Raises DatasetError unless every resolution is a multiple of `stride`, if overrides do not suit their
    images, or if nothing is left.
    """
    check_resolutions(data.all_resolutions, stride)
    _check_overrides(manifest.usable, stride)
    records = [record if record.excluded else placed(record, data, stride) for record in manifest.records]
    if manifest.used and not Manifest(tuple(records)).used:
        names = {record.name for record in manifest.used}
        lost = preview_names(f"{one.name} ({one.excluded})" for one in records if one.name in names)
        advice = "use larger ones, lower data.resolution, or raise data.max_upscale"
        raise DatasetError(f"no image is left: {lost}; {advice}.")
    return Manifest(tuple(records))


def crop_loss(record: Record) -> float:
    """The share of the image that the crop cuts away, 0 to 1; 0 if it has no bucket yet."""
    if record.bucket is None or record.resize is None:
        return 0.0
    return 1 - record.bucket.area / (record.resize[0] * record.resize[1])


def enlargement(record: Record) -> float:
    """How many times the image is enlarged to fill its bucket; 1 or less if it is not."""
    if record.resize is None:
        return 1.0
    longer = record.height > record.width  # that side is hardly changed by the rounding to whole pixels
    return record.resize[longer] / (record.width, record.height)[longer]


def losses(record: Record) -> tuple[float, float]:
    """What tells good buckets from bad ones: the share that is cropped away, then how much it is enlarged."""
    return crop_loss(record), max(1.0, enlargement(record))


def placed(record: Record, data: DataConfig, stride: int) -> Record:
    """The record with all its views, data.resolution's first, or the reason why it fits no bucket."""
    learned, own, covers = record.role == "instance", record.overrides, _covers(record, data, stride)
    if not covers:
        limit = f"the smallest is {stride}x{stride}, data.max_upscale is {data.max_upscale:g}"
        return replace(record, excluded=f"too small for any bucket: {limit}")
    mode = own.crop or ("focus" if own.focus else data.crop)
    if mode == "random" and not learned:
        mode = "centre"
    seen = subject(record) if mode != "centre" else None
    share = (data.flip if own.flip is None else own.flip) if learned else 0.0
    views = []
    for side, cover in covers:
        crops = crop_boxes(record, cover, mode=mode, count=data.crops, subject=seen)
        views += _views(side, cover, crops, share)
    return replace(record, **vars(views[0]), flip_share=share, more_views=tuple(views[1:]))


def trained_size(record: Record, data: DataConfig, stride: int) -> tuple[int, int] | None:
    """The `resize` that `placed` gives the record, whatever its crop; None if it fits no bucket."""
    covers = _covers(record, data, stride)
    return covers[0][1].resize if covers else None


def placed_among(record: Record, buckets: Sequence[Bucket]) -> Record:
    """The record, its middle, in the bucket that it loses least in; among equals it is enlarged least."""
    fits = ((bucket, *fit(record.width, record.height, bucket)) for bucket in buckets)
    placed = (
        replace(record, bucket=at, resize=size, crop=box, flip=False, more_views=()) for at, size, box in fits
    )
    return min(placed, key=losses)


def _covers(record: Record, data: DataConfig, stride: int) -> list[tuple[int, Cover]]:
    """Every resolution at which the image is shown, and how it covers its bucket there.

    Where it is too small it is shown as large as it may be, unless another of its buckets is about so large.
    """
    resolutions = dict.fromkeys(data.all_resolutions if record.role == "instance" else (data.resolution,))
    if record.overrides.bucket:
        return [(data.resolution, _cover(record, Bucket(*record.overrides.bucket)))]
    left, top, right, bottom = _region(record)
    size, limits = (right - left, bottom - top), (data.area_tolerance, data.max_upscale)
    found = {asked: largest_bucket(size, asked, stride, *limits) for asked in resolutions}
    kept = {asked: best for asked, best in found.items() if best and best[0] == asked}
    for asked, best in found.items():
        enough = max((bucket.area for _, bucket in kept.values()), default=0)
        if best and best[1].area * (1 - data.area_tolerance) > enough:
            kept[asked] = best
    return [(best[0], _cover(record, best[1])) for asked in found if (best := kept.get(asked))]


def _region(record: Record) -> CropBox:
    return record.overrides.region or (0, 0, record.width, record.height)


def _cover(record: Record, bucket: Bucket) -> Cover:
    """The whole image, resized so that its region, all of it without one, just covers the bucket."""
    return _cover_of((record.width, record.height), _region(record), bucket)


@lru_cache(maxsize=4096)  # equal ones are one in memory, of which very many images take less
def _cover_of(size: tuple[int, int], region: CropBox, bucket: Bucket) -> Cover:
    left, top, right, bottom = region
    (width, height), _ = fit(right - left, bottom - top, bucket)
    across, down = width / (right - left), height / (bottom - top)
    resize = (max(width, round(size[0] * across)), max(height, round(size[1] * down)))
    x, y = min(round(left * across), resize[0] - width), min(round(top * down), resize[1] - height)
    return Cover(bucket, resize, (x, y, x + width, y + height))


def _views(resolution: int, cover: Cover, crops: Sequence[CropBox], flip_share: float) -> list[View]:
    """As it is, if it is ever shown so, then mirrored; the same parts of the image."""
    views, width = [View(resolution, cover.bucket, cover.resize, crop) for crop in crops], cover.resize[0]
    if not flip_share:
        return views
    boxes = [(width - right, top, width - left, bottom) for left, top, right, bottom in crops]
    mirrored = [View(resolution, cover.bucket, cover.resize, box, flip=True) for box in boxes]
    return mirrored if flip_share == 1 else views + mirrored


def check_resolutions(resolutions: Sequence[int], stride: int) -> None:
    """Raise DatasetError unless all are multiples of the stride; the first is data.resolution."""
    for number, side in enumerate(resolutions):
        if side < stride or side % stride:
            below, above = side // stride * stride, (side // stride + 1) * stride
            nearest = " or ".join(str(near) for near in (below, above) if near)
            what = f"data.extra_resolutions has {side}" if number else f"data.resolution is {side}"
            raise DatasetError(f"{what}; this base needs a multiple of {stride}, so set it to {nearest}.")


def _check_overrides(records: Iterable[Record], stride: int) -> None:
    faults = []
    for record in records:
        own = record.overrides
        if own.bucket and any(side < stride or side % stride for side in own.bucket):
            size = f"{own.bucket[0]}x{own.bucket[1]}"
            faults.append(f"{record.name} (bucket {size}: both must be multiples of {stride})")
        if own.region and (own.region[2] > record.width or own.region[3] > record.height):
            size = f"{record.width}x{record.height}"
            faults.append(f"{record.name} (crop {list(own.region)}: the image is {size})")
    if faults:
        raise DatasetError(f"metadata asks for what cannot be: {preview_names(faults)}; mend those lines.")


CropBox = tuple[int, int, int, int]  # left, top, right, bottom in pixels


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
    x, y = (left + right) / 2, (top + bottom) / 2
    if mode == "focus" and (point := record.overrides.focus or (subject and subject.centre)):
        x, y = point[0] * cover.resize[0], point[1] * cover.resize[1]
    start = within(math.floor(x - bucket.width / 2), left, right - bucket.width)
    return [_box(start, within(math.floor(y - bucket.height / 2), top, bottom - bucket.height), bucket)]


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


def _starts(start: int, end: int, side: int, span: tuple[float, float] | None) -> range:
    """Where a crop of this side may begin between start and end, with the span in it, or it in the span."""
    first, last = start, end - side
    if span is not None:
        low, high = sorted((math.floor(span[0]), math.ceil(span[1]) - side))
        first, last = within(low, first, last), within(high, first, last)
    return range(first, last + 1)


@lru_cache(maxsize=4096)
def _box(left: int, top: int, bucket: Bucket) -> CropBox:
    return left, top, left + bucket.width, top + bucket.height

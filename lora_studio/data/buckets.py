"""Sizes that pictures share in a batch, so that little is cropped away and no memory is wasted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from lora_studio.data.manifest import Bucket, Manifest, Record
from lora_studio.errors import DatasetError

_MAX_EXCESS = 0.05  # memory grows with the area; so much more than asked for still fits where a square fits


def bucket_sizes(
    area_pixels: int, stride: int, *, max_aspect: float = 3.0, tolerance: float = 0.12
) -> list[Bucket]:
    """All buckets of about `area_pixels`, nearest to it first: at most `tolerance` smaller and 5 % larger.

    The largest square within the area is always among them.
    """
    square = math.isqrt(area_pixels) // stride * stride
    if square == 0:
        side = math.isqrt(area_pixels)
        raise DatasetError(
            f"data.resolution is {side}; this base needs {stride} or more, in multiples of {stride}."
        )
    sizes = {(square, square)}
    smallest, largest = area_pixels * (1 - tolerance), area_pixels * (1 + _MAX_EXCESS)
    for short in range(stride, square + stride, stride):
        for long in range(short, int(short * max_aspect) + 1, stride):
            if smallest <= short * long <= largest:
                sizes |= {(short, long), (long, short)}
    buckets = [Bucket(width, height) for width, height in sizes]
    return sorted(buckets, key=lambda bucket: _preference(bucket, area_pixels))


def choose_bucket(width: int, height: int, buckets: Sequence[Bucket]) -> Bucket:
    """The bucket into which the picture goes with the smallest share cropped away; among equals the first."""
    return max(buckets, key=lambda bucket: _kept(width, height, bucket))


def fit(width: int, height: int, bucket: Bucket) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """The size to resize a picture to so that it just covers the bucket, and the centred crop box in it."""
    if bucket.width * height >= bucket.height * width:  # narrower than the bucket: its width decides
        resize = (bucket.width, max(bucket.height, _divide(height * bucket.width, width)))
    else:
        resize = (max(bucket.width, _divide(width * bucket.height, height)), bucket.height)
    left, top = (resize[0] - bucket.width) // 2, (resize[1] - bucket.height) // 2
    return resize, (left, top, left + bucket.width, top + bucket.height)


def assign(manifest: Manifest, *, resolution: int, stride: int) -> Manifest:
    """The manifest with bucket, resize and crop in every used record.

    `resolution` is the side in pixels of a square of the area asked for. Raises DatasetError unless it is a
    multiple of `stride`.
    """
    if resolution < stride or resolution % stride:
        below, above = resolution // stride * stride, (resolution // stride + 1) * stride
        nearest = " or ".join(str(side) for side in (below, above) if side)
        rule = f"this base needs a multiple of {stride}"
        raise DatasetError(f"data.resolution is {resolution}; {rule}, so set it to {nearest}.")
    buckets = bucket_sizes(resolution**2, stride)
    return Manifest(
        tuple(record if record.excluded else placed(record, buckets) for record in manifest.records)
    )


def crop_loss(record: Record) -> float:
    """The share of the picture that the crop cuts away, 0 to 1; 0 if it has no bucket yet."""
    if record.bucket is None or record.resize is None:
        return 0.0
    return 1 - record.bucket.width * record.bucket.height / (record.resize[0] * record.resize[1])


def placed(record: Record, buckets: Sequence[Bucket]) -> Record:
    """The record with the one of the buckets into which it goes with the least loss, resize and crop."""
    bucket = choose_bucket(record.width, record.height, buckets)
    resize, crop = fit(record.width, record.height, bucket)
    return replace(record, bucket=bucket, resize=resize, crop=crop)


def _preference(bucket: Bucket, area_pixels: int) -> tuple[int, Fraction, int]:
    """Nearness in area, then to the square; only the last number tells a bucket from its transpose."""
    width, height = bucket.width, bucket.height
    return abs(width * height - area_pixels), Fraction(max(width, height), min(width, height)), width


def _kept(width: int, height: int, bucket: Bucket) -> Fraction:
    """The share of the picture that is left; exact, so that transposed pictures are treated alike."""
    across, down = width * bucket.height, height * bucket.width
    return Fraction(min(across, down), max(across, down))


def _divide(numerator: int, denominator: int) -> int:
    """Rounded half up."""
    return (2 * numerator + denominator) // (2 * denominator)

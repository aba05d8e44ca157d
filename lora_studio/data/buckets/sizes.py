"""The sizes that images share in a batch, and which of them suits an image: arithmetic alone."""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import cache, lru_cache

from lora_studio.data.manifest import Bucket
from lora_studio.errors import DatasetError
from lora_studio.recipe.data import MOST_RESOLUTION, DataConfig

# How much smaller than asked a bucket may be: just enough for 576x384 where 512x512 is asked, so that 3:2
# photographs, which cameras make, lose nothing at a stride of 64.
AREA_TOLERANCE: float = DataConfig.model_fields["area_tolerance"].default
MAX_ASPECT = 3.0  # of a bucket, either way; longer images are cropped
_MAX_EXCESS = 0.05  # memory grows with the area; so much more than asked for still fits where a square fits


def bucket_sizes(
    area_pixels: int, stride: int, *, max_aspect: float = MAX_ASPECT, tolerance: float = AREA_TOLERANCE
) -> list[Bucket]:
    """All buckets of about `area_pixels`, nearest to it first: at most `tolerance` smaller and 5 % larger.

    The largest square within the area is always among them.
    """
    side = math.isqrt(area_pixels)
    square = side // stride * stride
    if square == 0:
        what = f"data.resolution is {side}; this base needs"
        raise DatasetError(f"{what} {stride} or more, in multiples of {stride}.")
    if side > MOST_RESOLUTION:
        raise DatasetError(f"data.resolution is {side}; at most {MOST_RESOLUTION} pixels are trained.")
    sizes = {(square, square)}
    smallest, largest = area_pixels * (1 - tolerance), area_pixels * (1 + _MAX_EXCESS)
    for short in range(stride, square + stride, stride):
        first = max(short, math.ceil(smallest / short / stride) * stride)
        last = min(int(short * max_aspect), int(largest / short))
        for long in range(first, last + 1, stride):
            sizes |= {(short, long), (long, short)}

    def preference(bucket: Bucket) -> tuple[int, float, int]:
        """Nearness in area, then to the square; only the last number tells a bucket from its transpose."""
        width, height = bucket.width, bucket.height
        return abs(width * height - area_pixels), max(width, height) / min(width, height), width

    return sorted((Bucket(*size) for size in sizes), key=preference)


class BucketTable:
    """The buckets of one area, in the order of their aspect, so that an image's is found by bisection."""

    def __init__(self, area_pixels: int, stride: int, tolerance: float = AREA_TOLERANCE) -> None:
        self.sizes = bucket_sizes(area_pixels, stride, tolerance=tolerance)
        first: dict[float, tuple[int, Bucket]] = {}
        for rank, bucket in enumerate(self.sizes):  # of one aspect the one nearest to the area
            first.setdefault(bucket.width / bucket.height, (rank, bucket))
        self._aspects = sorted(first)
        self._ranked = [first[aspect] for aspect in self._aspects]

    def choose(self, width: int, height: int) -> Bucket:
        """The bucket with the smallest share cropped away, among equals the one nearest to the area."""
        # The division of whole numbers as small as sizes is exact enough: equal quotients are equal floats.
        above = bisect_left(self._aspects, width / height)
        neighbours = self._ranked[max(0, above - 1) : above + 1]
        ranked = [(cropped_share(width, height, bucket), rank, bucket) for rank, bucket in neighbours]
        return min(ranked, key=lambda entry: entry[:2])[2]


bucket_table = cache(BucketTable)  # at most one for each multiple of the stride up to the resolution


@lru_cache(maxsize=100_000)  # most images of a folder have one of a few sizes
def largest_bucket(
    size: tuple[int, int], resolution: int, stride: int, tolerance: float, max_upscale: float
) -> tuple[int, Bucket] | None:
    """The image's bucket at the resolution, or a smaller one if it would be enlarged more than the limit.

    With it the resolution that it belongs to: the one asked for, or the side of a square of the smaller
    bucket's area. None if even the smallest bucket would need more than `max_upscale`.
    """
    width, height = size
    bucket = bucket_table(resolution**2, stride, tolerance).choose(width, height)
    most = width * max_upscale, height * max_upscale
    if bucket.width <= most[0] and bucket.height <= most[1]:
        return resolution, bucket
    across, down = (int(side / stride) for side in most)  # in strides
    likely = (Bucket(i * stride, j * stride) for i, j in _likely_sizes(across, down, width / height))
    found = [bucket for bucket in likely if bucket.area <= resolution**2 * (1 + _MAX_EXCESS)]
    if not found:
        return None
    smallest = max(bucket.area for bucket in found) * (1 - tolerance)
    enough = [bucket for bucket in found if bucket.area >= smallest]
    bucket = min(enough, key=lambda bucket: (cropped_share(width, height, bucket), -bucket.area))
    return min(resolution, round(math.sqrt(bucket.area))), bucket


def _likely_sizes(across: int, down: int, aspect: float) -> set[tuple[int, int]]:
    """Sizes (i, j) up to across and down with, for every i and for every j, those nearest to the aspect."""
    found = set()
    for i in range(1, across + 1):
        for j in (math.floor(i / aspect), math.ceil(i / aspect)):
            found.add((i, within(j, math.ceil(i / MAX_ASPECT), min(down, int(i * MAX_ASPECT)))))
    for j in range(1, down + 1):
        for i in (math.floor(j * aspect), math.ceil(j * aspect)):
            found.add((within(i, math.ceil(j / MAX_ASPECT), min(across, int(j * MAX_ASPECT))), j))
    return {(i, j) for i, j in found if i <= across and j <= down and max(i, j) <= MAX_ASPECT * min(i, j)}


def within(value: int, lowest: int, highest: int) -> int:
    return max(lowest, min(value, highest))


def fit(width: int, height: int, bucket: Bucket) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """The size to resize an image to so that it just covers the bucket, and the centred crop box in it."""
    if bucket.width * height >= bucket.height * width:  # narrower than the bucket: its width decides
        resize = (bucket.width, max(bucket.height, _divide(height * bucket.width, width)))
    else:
        resize = (max(bucket.width, _divide(width * bucket.height, height)), bucket.height)
    left, top = (resize[0] - bucket.width) // 2, (resize[1] - bucket.height) // 2
    return resize, (left, top, left + bucket.width, top + bucket.height)


def cropped_share(width: int, height: int, bucket: Bucket) -> float:
    """The share of an image of this shape that does not fit into the bucket, 0 to 1."""
    across, down = width * bucket.height, height * bucket.width
    return 1 - min(across, down) / max(across, down)


def _divide(numerator: int, denominator: int) -> int:
    """Rounded half up."""
    return (2 * numerator + denominator) // (2 * denominator)

"""Regularization images beside the images of a batch: which, and in which shape."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from lora_studio.data.buckets import losses, placed_among
from lora_studio.data.manifest import Bucket, Record
from lora_studio.rng import python_random


def place_beside(regularization_images: Sequence[Record], images: Sequence[Record]) -> list[Record]:
    """The regularization images in the buckets of the images, so that every batch can hold some.

    Each goes into the bucket that it loses least in. A bucket whose share of them is larger, or which has
    more images than that, also gets others, those that lose least in it: a few that come again and again
    would be learned by heart.
    """
    counts = Counter(record.bucket for record in images if record.bucket)
    beside = [placed_among(record, list(counts)) for record in regularization_images]
    own = list(beside)
    for bucket, count in counts.items():
        share = math.ceil(len(own) * count / counts.total())
        wanted = min(len(own), max(share, count)) - sum(one.bucket == bucket for one in own)
        others = [placed_among(one, [bucket]) for one in own if one.bucket != bucket]
        beside += sorted(others, key=losses)[: max(0, wanted)]
    return beside


class ClassRows:
    """Which regularization images a micro-batch holds besides its own: a pure function of seed, step and number.

    `pools`: for each bucket the indices to draw from; a bucket without one gets no regularization images.
    """

    def __init__(self, pools: Mapping[Bucket, Sequence[int]], *, per_image: float, seed: int) -> None:
        self._pools = {bucket: list(pool) for bucket, pool in pools.items()}
        self.per_image, self._seed = per_image, seed

    def beside(self, step: int, number: int, *, bucket: Bucket | None, count: int) -> list[int]:
        """Those beside `count` images of a bucket, at least one; none twice before all are there."""
        pool = self._pools.get(bucket) if bucket else None
        if not pool:
            return []
        rows = max(1, math.floor(self.per_image * count + 0.5))
        draw = python_random(self._seed, step, number, "regularization images")
        chosen: list[int] = []
        while len(chosen) < rows:
            chosen += draw.sample(pool, min(rows - len(chosen), len(pool)))
        return chosen


def class_rows(records: Sequence[Record], *, first: int, per_image: float, seed: int) -> ClassRows:
    """Draws from `records[first:]`, which are regularization images; an image with repeats is drawn more often."""
    pools: dict[Bucket, list[int]] = {}
    for index in range(first, len(records)):
        record = records[index]
        assert record.bucket is not None, record.name
        pools.setdefault(record.bucket, []).extend([index] * record.repeats)
    return ClassRows(pools, per_image=per_image, seed=seed)

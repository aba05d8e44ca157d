"""What the choice of buckets does: to the shapes that cameras and screens have, and to a set of images."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from lora_studio.data.batches import entries, views_of
from lora_studio.data.buckets import check_resolutions, crop_loss, enlargement
from lora_studio.data.buckets.sizes import AREA_TOLERANCE, bucket_table, cropped_share
from lora_studio.data.manifest import Bucket, Overrides, Record
from lora_studio.errors import preview_names

_LANDSCAPE = ((5, 4), (4, 3), (3, 2), (16, 10), (5, 3), (16, 9), (21, 9))
COMMON_ASPECTS = ((1, 1), *_LANDSCAPE, *((height, width) for width, height in _LANDSCAPE))
_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)


@dataclass(frozen=True)
class AspectRow:
    """What becomes of images of one shape that are large enough."""

    aspect: str  # "3:2"
    bucket: Bucket
    cropped: float  # share of the image, 0 to 1
    area: float  # share of the area asked for


def aspect_rows(resolution: int, stride: int, tolerance: float = AREA_TOLERANCE) -> list[AspectRow]:
    """A row for each of the 15 common shapes, the square first, then landscape, then portrait.

    Raises DatasetError unless the resolution is a multiple of the stride.
    """
    check_resolutions([resolution], stride)
    table = bucket_table(resolution**2, stride, tolerance)
    rows = []
    for width, height in COMMON_ASPECTS:
        bucket = table.choose(width, height)
        cropped = cropped_share(width, height, bucket)
        rows.append(AspectRow(f"{width}:{height}", bucket, cropped, bucket.area / resolution**2))
    return rows


@dataclass(frozen=True)
class BucketPlan:
    """How a set of images is shown; an image counts once for each area at which it is."""

    images: int
    latents: int  # one for each view: area, crop, mirrored or not
    buckets: dict[str, int]  # "512x768" -> images
    resolutions: dict[int, int]  # side of a square of the area -> images
    crop_share: float  # mean share of an image that is cropped away
    smaller: tuple[str, ...]  # images too small for a resolution that was asked for
    enlarged: dict[str, float]  # images that are enlarged -> how many times
    crops: int  # the most that an image has at one area
    mirrored: float  # mean share of showings that are mirrored
    captions_with_sides: int  # of mirrored images: those whose caption says left or right
    overrides: tuple[str, ...]  # images whose line of metadata says how they are shown

    def rows(self) -> list[tuple[str, str]]:
        """(title, text) for a plan: buckets and the average crop always, the rest only where it applies."""
        buckets = ", ".join(f"{name}: {count}" for name, count in self.buckets.items())
        areas = ", ".join(f"{count} at {side}" for side, count in self.resolutions.items())
        smaller, enlarged, own = (
            f"{len(names)} ({preview_names(names)})"
            for names in (self.smaller, self.enlarged, self.overrides)
        )
        most, sides = max(self.enlarged.values(), default=1.0), "captions that say left or right"
        rows = [
            (True, "buckets", buckets),
            (True, "", f"{self.crop_share:.1%} of an image is cropped away on average"),
            (len(self.resolutions) > 1, "areas", f"{areas}; an epoch shows an image at each of its own"),
            (self.smaller, "", f"too small for the area asked for, in smaller buckets: {smaller}"),
            (self.enlarged, "", f"enlarged, up to {most:.2f} times: {enlarged}"),
            (self.crops > 1, "crops", f"up to {self.crops} of an image, one by chance each time"),
            (self.mirrored, "mirrored", f"{self.mirrored:.0%} of the showings"),
            (
                self.captions_with_sides,
                "warning",
                f"{sides}, which is wrong of a mirrored image: {self.captions_with_sides}",
            ),
            (self.latents > self.images, "latents", f"{self.latents} of {self.images} images"),
            (self.overrides, "", f"with settings of their own: {own}"),
        ]
        return [(label, text) for applies, label, text in rows if applies]


def bucket_plan(records: Sequence[Record], asked: Sequence[int]) -> BucketPlan:
    """The plan of used records, placed by `buckets.assign` at the resolutions `asked`."""
    shown = entries(records)
    crops = [{view.crop for view in views_of(entry) if view.flip == entry.flip} for entry in shown]
    return BucketPlan(
        images=len(records),
        latents=sum(len(views_of(record)) for record in records),
        buckets=dict(sorted(Counter(entry.bucket.name for entry in shown if entry.bucket).items())),
        resolutions=dict(sorted(Counter(entry.resolution for entry in shown).items(), reverse=True)),
        crop_share=fmean(map(crop_loss, shown)) if shown else 0.0,
        smaller=tuple(dict.fromkeys(entry.name for entry in shown if entry.resolution not in asked)),
        enlarged={record.name: enlargement(record) for record in shown if enlargement(record) > 1},
        crops=max(map(len, crops), default=0),
        mirrored=fmean(one.flip_share for one in records) if records else 0.0,
        captions_with_sides=sum(bool(one.flip_share and _SIDES.search(one.caption)) for one in records),
        overrides=tuple(record.name for record in records if record.overrides != Overrides()),
    )

"""What would be trained on, as plain values for JSON and the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from lora_studio.data.buckets import crop_loss
from lora_studio.data.doctor.finding import printable
from lora_studio.data.manifest import Record


def bucket_plan(records: Sequence[Record], *, resolution: int, stride: int) -> dict[str, Any]:
    """Buckets with their number of pictures, and every usable picture with its bucket and crop.

    `crop` is left, top, right, bottom in the picture as resized to `resize`; `cropped_away` a share, 0 to 1.
    """
    usable = [record for record in records if not record.excluded]
    trained = [record for record in usable if record.role == "instance"]
    buckets = Counter(record.bucket.name for record in trained if record.bucket)
    return {
        "resolution": resolution,
        "stride": stride,
        "files": len(records),
        "used": len(trained),
        "roles": dict(Counter(record.role for record in usable)),
        "buckets": dict(sorted(buckets.items())),
        "cropped_away": sum(map(crop_loss, trained)) / len(trained) if trained else 0.0,
        "pictures": [_picture(record) for record in usable],
    }


def _picture(record: Record) -> dict[str, Any]:
    return {
        "path": printable(record.name),
        "role": record.role,
        "repeats": record.repeats,
        "width": record.width,
        "height": record.height,
        "bucket": record.bucket and record.bucket.name,
        "resize": record.resize and list(record.resize),
        "crop": record.crop and list(record.crop),
        "cropped_away": round(crop_loss(record), 4),
        "caption": printable(record.caption),
    }

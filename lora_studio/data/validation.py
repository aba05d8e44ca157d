"""Which images are held out: measured, and not trained on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from lora_studio.data.manifest import Manifest
from lora_studio.errors import DatasetError
from lora_studio.rng import key


def hold_out(manifest: Manifest, count: int) -> Manifest:
    """The manifest with `count` of its images to train on given the role validation.

    Chosen by their content alone, so that adding an image or another seed hardly changes the choice. Of what
    a trigger calls one image always stays to be trained on. Raises DatasetError if that leaves too few.
    """
    left = Counter(record.trigger for record in manifest.used)
    chosen: set[str] = set()
    for record in sorted(manifest.used, key=lambda one: key("holdout", one.sha256)):
        if len(chosen) < count and left[record.trigger] > 1:
            left[record.trigger] -= 1
            chosen.add(record.path)
    if len(chosen) < count:
        raise DatasetError(
            f"{count} images shall be held out of {len(manifest.used)}, but at least one must be left for "
            f"each trigger; set validation.count to {len(chosen)} or less."
        )
    return Manifest(
        tuple(
            replace(record, role="validation")
            if record.path in chosen and record.role == "instance"
            else record
            for record in manifest.records
        )
    )

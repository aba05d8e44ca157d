"""From images to what is trained on: one entry for each area of an image, one latent for each view of it.

An epoch shows every entry exactly as often as its repeats say; which of its crops, and whether mirrored, is
drawn anew each time.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

from lora_studio.data.manifest import Bucket, Record, View


def entries(records: Iterable[Record]) -> list[Record]:
    """Each image once for each area at which it is shown; the views of that area stay with it."""
    found = []
    for record in records:
        by_area: dict[Bucket, list[View]] = {}
        for view in views_of(record):
            by_area.setdefault(view.bucket, []).append(view)
        found += [as_shown(record, views[0], more=tuple(views[1:])) for views in by_area.values()]
    return found


def each_view(records: Iterable[Record]) -> list[Record]:
    """A record for every view of every record, in their order: what a latent is made of."""
    return [as_shown(record, view) for record in records for view in views_of(record)]


def views_of(record: Record) -> list[View]:
    """All ways to show a placed image: as it is, then mirrored, for one area after the other."""
    assert record.bucket and record.resize and record.crop, record.name
    first = View(record.resolution, record.bucket, record.resize, record.crop, record.flip)
    return [first, *record.more_views]


def as_shown(record: Record, view: View, *, more: tuple[View, ...] = ()) -> Record:
    """The record with this view as its first."""
    return replace(record, **vars(view), more_views=more)


def draw_view(entry: Record, draw: random.Random) -> int:
    """Which of an entry's views is shown: mirrored in `flip_share` of the draws, all crops alike."""
    mirrored = draw.random() < entry.flip_share
    fitting = [number for number, view in enumerate(views_of(entry)) if view.flip == mirrored]
    return draw.choice(fitting)

"""Of files with the same bytes one is used: one that has a caption of its own, or a mask, before others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Sequence
from dataclasses import replace
from typing import NamedTuple

from lora_studio.data.captions import find_captions
from lora_studio.data.images import place
from lora_studio.data.manifest import FOLDER_NAME, INSTANCE_PROMPT, Record
from lora_studio.data.masks import OWN

# Of equal files the one in the first role here is kept: validation images must not be trained on.
_KEPT_FIRST = ("validation", "instance", "prior")


class _Own(NamedTuple):
    """What an image has that somebody made for it alone."""

    caption: str
    mask: bool


def in_a_folder(records: Sequence[Record], masked: Container[tuple[str, str]]) -> list[Record]:
    """The records with the reason in those that are left out. Their captions were not read yet.

    `masked`: the places of images that have a mask. Of several with as much of their own the one with the
    shortest name stays: "a.png" and not "a (1).png".
    """

    def own(equal: Sequence[Record]) -> list[_Own]:
        files = find_captions(equal)
        return [
            _Own(file.text or _caption(record), place(record.name) in masked)
            for record, file in zip(equal, files, strict=True)
        ]

    found = list(records)
    for places in _equal(records):
        has = own([records[at] for at in places])
        pairs = zip(places, has, strict=True)
        (kept, its), *copies = sorted(pairs, key=lambda one: _rank(one[1], len(records[one[0]].name)))
        for at, own_of_copy in copies:
            reason = f"the same bytes as {records[kept].name}" + _lost(own_of_copy, its)
            found[at] = replace(records[at], excluded=reason)
    return found


def across_sources(records: Sequence[Record]) -> list[Record]:
    """Likewise, of several sources with their captions and masks; those with other roles come first."""
    found = list(records)
    for places in _equal(records):
        has = {at: _Own(_caption(records[at]), records[at].mask not in ("", OWN)) for at in places}
        kept, *copies = sorted(
            places, key=lambda at: (_KEPT_FIRST.index(records[at].role), *_rank(has[at], 0))
        )
        role = ", a validation image" if records[kept].role == "validation" else ""
        for at in copies:
            reason = f"the same bytes as {records[kept].name}{role}" + _lost(has[at], has[kept])
            found[at] = replace(records[at], excluded=reason)
    return found


def _equal(records: Sequence[Record]) -> list[list[int]]:
    """Places of usable records of the same bytes, where there are several."""
    equal: dict[str, list[int]] = defaultdict(list)
    for at, record in enumerate(records):
        if not record.excluded:
            equal[record.sha256].append(at)
    return [places for places in equal.values() if len(places) > 1]


def _rank(own: _Own, length: int) -> tuple[bool, bool, int]:
    return (not own.caption, not own.mask, length)


def _caption(record: Record) -> str:
    shared = record.captioned_by in (FOLDER_NAME, INSTANCE_PROMPT)
    return "" if shared else record.caption


def _lost(own: _Own, kept: _Own) -> str:
    """What goes with a copy, to stand behind the reason."""
    lost = ["its other caption"] if own.caption and own.caption != kept.caption else []
    lost += ["its mask"] if own.mask and not kept.mask else []
    return f"; {' and '.join(lost)} {'is' if len(lost) == 1 else 'are'} not used" if lost else ""

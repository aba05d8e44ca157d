"""A folder -> a manifest with one record for every file found, also for those that cannot be used."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from lora_studio.data.images import (
    METADATA_NAMES,
    UnreadableFile,
    is_caption,
    is_image,
    is_mask,
    place,
    read_bytes,
)
from lora_studio.data.images.decode import (
    FORMATS_IN_WORDS,
    NOT_AN_IMAGE,
    DecodedImage,
    decode,
    in_threads,
)
from lora_studio.data.manifest import Manifest, Record
from lora_studio.data.scan.layouts import THE_LIST, ExcludeList, find
from lora_studio.data.scan.masks import with_masks
from lora_studio.errors import DatasetError, preview_names

OnImage = Callable[[Record, Image.Image], None]  # called by several threads

MAX_ASPECT = 10  # a longer strip would lose most of itself to the crop, and need gigabytes when it is resized


@dataclass(frozen=True)
class ScanOptions:
    recursive: bool = False  # also search all subfolders, whatever they are called
    background: str = "white"  # what clear parts get: a name or "#rrggbb"
    transparency_is_mask: bool = False  # clear parts are not learned
    masks: Path | None = None  # a folder of masks, besides those among the images
    min_side: int = 16  # pixels; smaller images are left out
    exclude: ExcludeList = ExcludeList()  # noqa: RUF009 (frozen)


class Survey(NamedTuple):
    """What a folder holds, and what is to be mended before it can be trained on."""

    manifest: Manifest
    mask_fault: str  # one sentence; such masks are not in the records


def scan(
    folder: Path, reading: ScanOptions = ScanOptions(), *, repeats: int = 1, on_image: OnImage | None = None
) -> Manifest:
    """One record for each file in `folder`, by name; see `layouts.find` for what belongs to it.

    Images are decoded once, fully, by several threads; `on_image` gets each usable one as it looks
    decoded, before captions are known. Captions and masks of theirs get no record of their own. Raises
    DatasetError if there is no usable image, two would share a caption file, or a mask does not fit.
    """
    manifest, mask_fault = survey(folder, reading, repeats=repeats, on_image=on_image)
    if shared := [" and ".join(one.name for one in group) for group in shared_stems(manifest.records)]:
        advice = "a caption file could belong to either, so rename or remove one of each"
        raise DatasetError(
            f"images have the same name but for the ending: {preview_names(shared)}; {advice}."
        )
    if mask_fault:
        raise DatasetError(mask_fault)
    if not manifest.used:
        found = preview_names(f"{record.name} ({record.excluded})" for record in manifest.excluded)
        advice = f"set data.images to a folder of {FORMATS_IN_WORDS} images"
        raise DatasetError(f"the folder of images {folder} holds no usable image, only {found}; {advice}.")
    return manifest


def survey(
    folder: Path, reading: ScanOptions = ScanOptions(), *, repeats: int = 1, on_image: OnImage | None = None
) -> Survey:
    """As `scan`, but does not mind what is only wrong with some of the files; see `shared_stems`, too."""
    records, captions, masks = list[Record](), list[Record](), list[Record]()
    everything = find(folder, recursive=reading.recursive, masks=reading.masks)
    images = (found.name for found in everything if not is_caption(found.name) and not is_mask(found.name))
    left_out = reading.exclude.chosen(images)  # captions and masks are left out with their images
    for found in everything:
        record = Record(
            path=str(found.path),
            name=found.name,
            caption=found.caption,
            captioned_by=found.captioned_by,
            repeats=found.overrides.repeats or repeats * found.repeats,
            overrides=found.overrides,
            excluded=found.skipped,
        )
        if not found.skipped and found.path.name == reading.exclude.name:
            record = replace(record, excluded=THE_LIST)
        elif not found.skipped and found.name in left_out:
            record = replace(record, excluded=reading.exclude.reason)
        if record.excluded:
            records.append(record)
        elif is_caption(found.path.name):
            captions.append(record)
        elif is_mask(found.path.name):
            masks.append(record)
        else:
            records.append(record)
    records = _without_duplicates(in_threads(lambda record: _examine(record, reading, on_image), records))
    orphans, mask_fault = _orphans(captions, records), ""
    try:
        records = with_masks(records, masks, reading.masks, from_transparency=reading.transparency_is_mask)
    except DatasetError as fault:
        mask_fault = str(fault)
    manifest = Manifest(tuple(sorted(records + orphans, key=lambda record: record.name)))
    return Survey(manifest, mask_fault)


def _examine(record: Record, reading: ScanOptions, on_image: OnImage | None) -> Record:
    """The record with its hash and size, or with the reason why the file cannot be used."""
    if record.excluded:
        return record
    try:
        data = read_bytes(Path(record.path))
    except UnreadableFile as reason:
        return replace(record, excluded=str(reason))
    record = replace(record, sha256=hashlib.sha256(data).hexdigest())
    try:
        decoded = decode(data, background=reading.background)
    except UnreadableFile as reason:
        return replace(record, excluded=str(reason))
    width, height = decoded.image.size
    record = replace(
        record,
        width=width,
        height=height,
        background=reading.background if decoded.opacity else "",
        note=decoded.note,
        excluded=_unfit(decoded, reading.min_side),
    )
    if on_image and not record.excluded:
        on_image(record, decoded.image)
    return record


def _unfit(decoded: DecodedImage, min_side: int) -> str:
    width, height = decoded.image.size
    if min(width, height) < min_side:
        return f"too small: {width}x{height}; both sides must be {min_side} pixels or more"
    if max(width, height) > MAX_ASPECT * min(width, height):
        return f"too long: {width}x{height}; one side may be at most {MAX_ASPECT} times the other"
    if decoded.opacity and decoded.opacity.getextrema() == (0, 0):
        return "clear all over: there is nothing to see"
    return ""


def _without_duplicates(records: Iterable[Record]) -> list[Record]:
    first: dict[str, str] = {}
    kept = []
    for record in records:
        if not record.excluded:
            original = first.setdefault(record.sha256, record.name)
            if original != record.name:
                record = replace(record, excluded=f"the same bytes as {original}")
        kept.append(record)
    return kept


def shared_stems(records: Iterable[Record]) -> list[list[Record]]:
    """Groups of used images to which the same caption file would belong.

    Where a list of captions names each image with its ending, nothing is shared.
    """
    by_stem: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        if not record.excluded:
            by_stem[place(record.name)].append(record)
    return [
        group
        for group in by_stem.values()
        if len(group) > 1 and not all(record.captioned_by in METADATA_NAMES for record in group)
    ]


def _orphans(captions: Iterable[Record], images: Iterable[Record]) -> list[Record]:
    """Records of the caption files that no image claims, be it a used or an excluded one."""
    claimed = {
        place(record.name)
        for record in images
        if record.excluded != NOT_AN_IMAGE and (record.sha256 or is_image(record.name))
    }
    reason = "no image of this name"
    return [replace(record, excluded=reason) for record in captions if place(record.name) not in claimed]

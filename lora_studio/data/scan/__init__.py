"""A folder -> a manifest with one record for every file found, also for those that cannot be used.

With the masks in and beside it: which belongs to which image, and whether it fits.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lora_studio.data.images import (
    METADATA_NAMES,
    UnreadableFile,
    is_caption,
    is_image,
    is_mask,
    place,
    read_bytes,
)
from lora_studio.data.images.decode import FORMATS_IN_WORDS, NOT_AN_IMAGE, DecodedImage, decode
from lora_studio.data.images.threads import in_threads
from lora_studio.data.manifest import Manifest, Record
from lora_studio.data.masks import OWN
from lora_studio.data.scan.duplicates import in_a_folder
from lora_studio.data.scan.layouts import LEFT_OUT, THE_LIST, ExcludeList, find
from lora_studio.errors import DatasetError, preview_names

OnImage = Callable[[Record, DecodedImage], None]  # called by several threads
OnProgress = Callable[[int, int], None]  # files looked at, files to look at

_MOST_AT_A_TIME = 8
MAX_ASPECT = 10  # a longer strip would lose most of itself to the crop, and need gigabytes when it is resized


@dataclass(frozen=True)
class ScanOptions:
    recursive: bool = False  # also search all subfolders, whatever they are called
    background: str = "white"  # what clear parts get: a name or "#rrggbb"
    transparency_is_mask: bool = False  # clear parts are not learned
    masks: Path | None = None  # a folder of masks, besides those among the images
    min_side: int = 16  # pixels; smaller images are left out
    enough_pixels: int = 0  # JPEGs are decoded at a half or less if that leaves so many; 0: as they are
    exclude: ExcludeList = ExcludeList()  # noqa: RUF009 (frozen)


def scan(
    folder: Path,
    reading: ScanOptions = ScanOptions(),
    *,
    repeats: int = 1,
    on_image: OnImage | None = None,
    on_progress: OnProgress | None = None,
) -> Manifest:
    """One record for each file in `folder`, by name; see `layouts.find` for what belongs to it.

    Images are decoded once, fully, by several threads; `on_image` gets each usable one as it looks
    decoded, before captions are known. Captions and masks of theirs get no record of their own. Raises
    DatasetError if there is no usable image, two would share a caption file, or a mask does not fit.
    """
    manifest, mask_fault = survey(
        folder, reading, repeats=repeats, on_image=on_image, on_progress=on_progress
    )
    if shared := [" and ".join(one.name for one in group) for group in shared_stems(manifest.records)]:
        what = f"images have the same name but for the ending: {preview_names(shared)}"
        raise DatasetError(f"{what}; a caption file could belong to either, so rename or remove one of each.")
    if mask_fault:
        raise DatasetError(mask_fault)
    if not manifest.used:
        found = preview_names(f"{record.name} ({record.excluded})" for record in manifest.excluded)
        advice = f"set data.images to a folder of {FORMATS_IN_WORDS} images"
        raise DatasetError(f"the folder of images {folder} holds no usable image, only {found}; {advice}.")
    return manifest


def survey(
    folder: Path,
    reading: ScanOptions = ScanOptions(),
    *,
    repeats: int = 1,
    on_image: OnImage | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[Manifest, str]:
    """As `scan`, but does not mind what is only wrong with some of the files; see `shared_stems`, too.

    Also one sentence about masks that do not fit, or ""; such masks are not in the records.
    """
    records, captions, masks = _sorted_out(folder, reading, repeats)
    examined = list(_examined(records, reading, on_image, on_progress))
    at_masks, mask_fault = [(place(one.name), one) for one in masks], ""
    try:
        at_masks += _in_folder(reading.masks)
    except DatasetError as fault:
        mask_fault = str(fault)
    records = in_a_folder(examined, {at for at, _ in at_masks})
    orphans = _orphans(captions, records)
    try:
        records = records if mask_fault else with_masks(records, at_masks, reading)
    except DatasetError as fault:
        mask_fault = str(fault)
    return Manifest(tuple(sorted(records + orphans, key=lambda record: record.name))), mask_fault


def count_files(folder: Path, reading: ScanOptions) -> int:
    """How many of its files `survey` will look at, without opening them; 0 if it cannot be read."""
    try:
        return len(_sorted_out(folder, reading, repeats=1)[0])
    except DatasetError:
        return 0


def _sorted_out(
    folder: Path, reading: ScanOptions, repeats: int
) -> tuple[list[Record], list[Record], list[Record]]:
    """The folder's images, and whatever is left out, then its captions and its masks; none was opened."""
    records, captions, masks = list[Record](), list[Record](), list[Record]()
    everything = find(folder, recursive=reading.recursive, masks=reading.masks)
    images = (found.name for found in everything if not is_caption(found.name) and not is_mask(found.name))
    left_out = reading.exclude.chosen(images)  # captions and masks are left out with their images
    for found in everything:
        file, excluded = Path(found.path).name, found.excluded
        if not excluded and file == reading.exclude.name:
            excluded = THE_LIST
        elif not excluded and found.name in left_out:
            excluded = LEFT_OUT + reading.exclude.name
        shown = found.overrides.repeats or repeats * found.repeats
        record = found
        if (shown, excluded) != (found.repeats, found.excluded):
            record = replace(found, repeats=shown, excluded=excluded)
        beside = captions if is_caption(file) else masks if is_mask(file) else records
        (records if excluded else beside).append(record)
    return records, captions, masks


def _examined(
    records: list[Record], reading: ScanOptions, on_image: OnImage | None, on_progress: OnProgress | None
) -> Iterator[Record]:
    """In their order; threads get several at a time, as handing over one costs as much as a small image.

    The list is empty afterwards: of very many images their first records would be a tenth of the memory.
    """

    def examine(some: list[Record]) -> list[Record]:
        return [_examine(record, reading, on_image) for record in some]

    def pieces() -> Iterator[list[Record]]:
        while records:
            yield records[: -size - 1 : -1]
            del records[-size:]

    total, done = len(records), 0
    size = 1 + min(_MOST_AT_A_TIME, total // 256)
    records.reverse()
    for piece in in_threads(examine, pieces()):
        yield from piece
        done += len(piece)
        if on_progress:
            on_progress(done, total)


def _examine(record: Record, reading: ScanOptions, on_image: OnImage | None) -> Record:
    if record.excluded:
        return record
    sha256 = ""
    try:
        data = read_bytes(Path(record.path))
        sha256 = hashlib.sha256(data).hexdigest()
        decoded = decode(data, background=reading.background, enough_pixels=reading.enough_pixels)
    except UnreadableFile as reason:
        return replace(record, sha256=sha256, excluded=str(reason))
    width, height = decoded.size
    record = replace(
        record,
        sha256=sha256,
        width=width,
        height=height,
        background=reading.background if decoded.opacity else "",
        note=decoded.note,
        excluded=_unfit(decoded, reading.min_side),
    )
    if on_image and not record.excluded:
        on_image(record, decoded)
    return record


def _unfit(decoded: DecodedImage, min_side: int) -> str:
    width, height = decoded.size
    if min(width, height) < min_side:
        return f"too small: {width}x{height}; both sides must be {min_side} pixels or more"
    if max(width, height) > MAX_ASPECT * min(width, height):
        return f"too long: {width}x{height}; one side may be at most {MAX_ASPECT} times the other"
    if decoded.opacity and decoded.opacity.getextrema() == (0, 0):
        return "clear all over: there is nothing to see"
    return ""


def shared_stems(records: Iterable[Record]) -> list[list[Record]]:
    """Groups of used images to which the same caption file would belong.

    Where a list of captions names each image with its ending, nothing is shared.
    """
    by_stem: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        if not record.excluded:
            by_stem[place(record.name)].append(record)
    shared = (group for group in by_stem.values() if len(group) > 1)
    return [group for group in shared if not all(one.captioned_by in METADATA_NAMES for one in group)]


def _orphans(captions: Iterable[Record], images: Iterable[Record]) -> list[Record]:
    """Records of the caption files that no image claims, be it a used or an excluded one."""
    read = (one for one in images if one.excluded != NOT_AN_IMAGE and (one.sha256 or is_image(one.name)))
    claimed = {place(record.name) for record in read}
    reason = "no image of this name"
    return [replace(record, excluded=reason) for record in captions if place(record.name) not in claimed]


NO_IMAGE = "a mask, but there is no image of this name"
_Place = tuple[str, str]  # what a mask has in common with its image


def with_masks(
    records: Sequence[Record], masks: Iterable[tuple[_Place, Record]], reading: ScanOptions
) -> list[Record]:
    """The records with their masks, and records of the masks that belong to no image.

    `masks`: the `name.mask.png` files among the images, and those of the folder of masks, which may be called
    `name.png`, too. Raises DatasetError that names every mask that does not fit.
    """
    folder = reading.masks
    by_place: dict[_Place, list[Record]] = defaultdict(list)
    for at, mask in masks:
        by_place[at].append(mask)
    faults = _ambiguous(records, by_place)
    if folder is not None and not any(place(one.name) in by_place for one in records if not one.excluded):
        faults.append(f"no file in {folder} is called like an image")
    masked = []
    for record in records:
        found = [] if record.excluded else by_place.get(place(record.name), [])
        if len(found) == 1:
            record = _masked(record, found[0], faults)
        elif reading.transparency_is_mask and record.background and not record.excluded:
            record = replace(record, mask=OWN)
        masked.append(record)
    if faults:
        advice = "a mask has the image's name and shape, and is white where it is learned"
        raise DatasetError(f"masks cannot be used: {preview_names(faults)}; {advice}.")
    known = {place(record.name) for record in records}
    orphans = [one for at, masks in by_place.items() if at not in known for one in masks]
    return masked + [Record(path=one.path, name=one.name, excluded=NO_IMAGE) for one in orphans]


def _in_folder(folder: Path | None) -> list[tuple[_Place, Record]]:
    if folder is None:
        return []
    if not folder.is_dir() or not any(folder.iterdir()):
        advice = "set data.masks to a folder of masks named like the images"
        raise DatasetError(f"the folder of masks {folder} does not exist or is empty; {advice}.")
    found = [one for one in find(folder, recursive=True) if not one.excluded and is_image(one.name)]
    return [(place(one.name), replace(one, name=f"{folder.name}/{one.name}")) for one in found]


def _ambiguous(records: Iterable[Record], by_place: dict[_Place, list[Record]]) -> list[str]:
    images: dict[_Place, list[str]] = defaultdict(list)
    for record in records:
        if not record.excluded:
            images[place(record.name)].append(record.name)
    faults = []
    for at, masks in by_place.items():
        if at in images and (len(masks) > 1 or len(images[at]) > 1):
            owners, names = " and ".join(images[at]), " and ".join(mask.name for mask in masks)
            faults.append(f"{names} (for {owners}: one mask an image)")
    return faults


def _masked(record: Record, mask: Record, faults: list[str]) -> Record:
    """The record with its mask; what is wrong with it is added to `faults`."""
    try:
        data = read_bytes(Path(mask.path))
        image = decode(data, background="black").image
    except UnreadableFile as reason:
        faults.append(f"{mask.name} ({reason})")
        return record
    if abs(image.width * record.height - image.height * record.width) > max(image.size):
        shape = f"the shape of {record.name}, {record.width}x{record.height}"
        faults.append(f"{mask.name} ({image.width}x{image.height} has not {shape})")
    elif image.convert("L").getextrema() == (0, 0):
        faults.append(f"{mask.name} (all black: nothing would be learned)")
    digest = hashlib.sha256(data).hexdigest()
    return replace(record, mask=mask.name, mask_path=mask.path, mask_sha256=digest)

"""Loss masks in and beside a folder of images: which mask belongs to which image, and whether it fits."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lora_studio.data.images import UnreadableFile, is_image, place, read_bytes
from lora_studio.data.images.decode import decode
from lora_studio.data.manifest import Record
from lora_studio.data.masks import OWN
from lora_studio.data.scan.layouts import find
from lora_studio.errors import DatasetError, preview_names

NO_IMAGE = "a mask, but there is no image of this name"


@dataclass(frozen=True)
class _Mask:
    path: Path
    name: str
    place: tuple[str, str]  # what it has in common with its image


def with_masks(
    records: Sequence[Record], beside: Iterable[Record], folder: Path | None, *, from_transparency: bool
) -> list[Record]:
    """The records with their masks, and records of the masks that belong to no image.

    `beside`: the `name.mask.png` files among the images; `folder` holds `name.mask.png` or `name.png`, in
    the same subfolders as the images. `from_transparency`: clear parts of an image without a mask file are
    not learned. Raises DatasetError that names every mask that does not fit.
    """
    masks = [_Mask(Path(one.path), one.name, place(one.name)) for one in beside] + _in_folder(folder)
    by_place: dict[tuple[str, str], list[_Mask]] = defaultdict(list)
    for mask in masks:
        by_place[mask.place].append(mask)
    wanted = {place(record.name) for record in records if not record.excluded}
    faults = _ambiguous(records, by_place)
    if folder is not None and not any(mask.place in wanted for mask in masks):
        faults.append(f"no file in {folder} is called like an image")
    masked = []
    for record in records:
        found = [] if record.excluded else by_place.get(place(record.name), [])
        if len(found) == 1:
            record = _masked(record, found[0], faults)
        elif from_transparency and record.background and not record.excluded:
            record = replace(record, mask=OWN)
        masked.append(record)
    if faults:
        advice = "a mask has the image's name and shape, and is white where it is learned"
        raise DatasetError(f"masks cannot be used: {preview_names(faults)}; {advice}.")
    known = {place(record.name) for record in records}
    orphans = [mask for mask in masks if mask.place not in known]
    return masked + [Record(path=str(one.path), name=one.name, excluded=NO_IMAGE) for one in orphans]


def _in_folder(folder: Path | None) -> list[_Mask]:
    if folder is None:
        return []
    if not folder.is_dir() or not any(folder.iterdir()):
        advice = "set data.masks to a folder of masks named like the images"
        raise DatasetError(f"the folder of masks {folder} does not exist or is empty; {advice}.")
    found = [one for one in find(folder, recursive=True) if not one.skipped and is_image(one.name)]
    return [_Mask(one.path, f"{folder.name}/{one.name}", place(one.name)) for one in found]


def _ambiguous(records: Iterable[Record], by_place: dict[tuple[str, str], list[_Mask]]) -> list[str]:
    """Faults: an image with several masks, a mask of several images."""
    images: dict[tuple[str, str], list[str]] = defaultdict(list)
    for record in records:
        if not record.excluded:
            images[place(record.name)].append(record.name)
    faults = []
    for at, masks in by_place.items():
        if at in images and (len(masks) > 1 or len(images[at]) > 1):
            owners, names = " and ".join(images[at]), " and ".join(mask.name for mask in masks)
            faults.append(f"{names} (for {owners}: one mask an image)")
    return faults


def _masked(record: Record, mask: _Mask, faults: list[str]) -> Record:
    """The record with its mask; what is wrong with it is added to `faults`."""
    try:
        data = read_bytes(mask.path)
        image = decode(data, background="black").image
    except UnreadableFile as reason:
        faults.append(f"{mask.name} ({reason})")
        return record
    if abs(image.width * record.height - image.height * record.width) > max(image.size):
        size, wanted = f"{image.width}x{image.height}", f"{record.width}x{record.height}"
        faults.append(f"{mask.name} ({size} has not the shape of {record.name}, {wanted})")
    elif image.convert("L").getextrema() == (0, 0):
        faults.append(f"{mask.name} (all black: nothing would be learned)")
    digest = hashlib.sha256(data).hexdigest()
    return replace(record, mask=mask.name, mask_path=str(mask.path), mask_sha256=digest)

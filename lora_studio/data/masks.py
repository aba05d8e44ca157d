"""Loss masks: which parts of an image are learned. White is, black is not, grey is in between."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from lora_studio.data.images.decode import decode, framed, reopen
from lora_studio.data.images.files import UnreadableFile, read_bytes
from lora_studio.data.images.names import is_image, place
from lora_studio.data.manifest import Record
from lora_studio.data.scan.layouts import find
from lora_studio.errors import DatasetError, preview_names

if TYPE_CHECKING:
    from torch import Tensor

OWN = "its transparency"  # stands for the name of the mask file where an image's own opacity is the mask
NO_IMAGE = "a mask, but there is no image of this name"


@dataclass(frozen=True)
class _Mask:
    """A file that may be a mask."""

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


class LossMask(NamedTuple):
    """What of an image is learned, as large as its latent."""

    inside: Tensor  # [H, W] with a mean of 1: a small subject is learned as strongly as a large one
    outside: Tensor  # [H, W] in 0..1: how far each latent is outside of the mask


def loss_mask(record: Record, width: int, height: int) -> LossMask | None:
    """A view's, for a latent of this size; None without a mask.

    Raises DatasetError if the mask is not the one that was scanned, or if the crop leaves nothing of it.
    """
    import torch

    assert record.resize is not None and record.crop is not None, record.name
    if not record.mask:
        return None
    box = Image.Resampling.BOX
    mask = framed(_open(record), record.resize, record.crop, flip=record.flip, resample=box)
    levels = np.asarray(mask.resize((width, height), box), dtype=np.float32)
    if levels.max() == 0:
        advice = 'set data.crop = "focus", or remove the mask'
        raise DatasetError(f"the crop of {record.name} leaves nothing of its mask; {advice}.")
    return LossMask(torch.from_numpy(levels / levels.mean()), torch.from_numpy(1 - levels / 255))


@dataclass(frozen=True)
class Subject:
    """Where a mask is white, in shares of the image's width and height, from the left and the top."""

    centre: tuple[float, float]  # of mass
    box: tuple[float, float, float, float]  # left, top, right, bottom of all that is not black


def subject(record: Record) -> Subject | None:
    """Where the mask of the image says that its subject is; None without one.

    Raises DatasetError if the mask is not the one that was scanned.
    """
    if not record.mask:
        return None
    levels = np.asarray(_open(record))
    centres, starts, ends = [], [], []
    for axis, side in ((0, record.width), (1, record.height)):
        line = levels.sum(axis=axis, dtype=np.float64)
        filled = np.flatnonzero(line)
        if not len(filled):  # a speck that vanished when the mask was made as large as the image
            return None
        centres.append(float(line @ (np.arange(side) + 0.5) / line.sum() / side))
        starts.append(float(filled[0] / side))
        ends.append(float((filled[-1] + 1) / side))
    return Subject((centres[0], centres[1]), (starts[0], starts[1], ends[0], ends[1]))


def _open(record: Record) -> Image.Image:
    """The mask, as large as the upright image."""
    if record.mask == OWN:
        opacity = reopen(record.path, record.sha256, background=record.background).opacity
        assert opacity is not None, record.name  # the bytes are those that had one
        return opacity
    mask = reopen(record.mask_path, record.mask_sha256, background="black").image.convert("L")
    return mask.resize((record.width, record.height), Image.Resampling.BOX)


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

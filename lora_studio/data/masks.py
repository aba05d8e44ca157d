"""Loss masks: which parts of an image are learned. White is, black is not, grey is in between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from lora_studio.data.images.decode import framed, reopen
from lora_studio.data.manifest import Record
from lora_studio.errors import DatasetError

if TYPE_CHECKING:
    from torch import Tensor

OWN = "its transparency"  # stands for the name of the mask file where an image's own opacity is the mask


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

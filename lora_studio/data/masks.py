"""Loss masks: which parts of an image are learned. White is, black is not, grey is in between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
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
    """Where the image's mask says that it is; None without one. Raises DatasetError if that has changed."""
    if not record.mask:
        return None
    levels = np.asarray(_open(record))
    if not levels.any():  # a speck that vanished when the mask was made as large as the image
        return None
    (x, left, right), (y, top, bottom) = (_along(levels.sum(axis, dtype=np.float64)) for axis in (0, 1))
    return Subject((x, y), (left, top, right, bottom))


def _along(line: NDArray[np.float64]) -> tuple[float, float, float]:
    """The centre of mass, start and end of what is not 0, in shares of the line."""
    side, filled = len(line), np.flatnonzero(line)
    centre = line @ (np.arange(side) + 0.5) / line.sum() / side
    return float(centre), float(filled[0] / side), float((filled[-1] + 1) / side)


def _open(record: Record) -> Image.Image:
    """The mask, as large as the upright image."""
    if record.mask == OWN:
        opacity = reopen(record.path, record.sha256, background=record.background).opacity
        assert opacity is not None, record.name  # the bytes are those that had one
        return opacity
    mask = reopen(record.mask_path, record.mask_sha256, background="black").image.convert("L")
    return mask.resize((record.width, record.height), Image.Resampling.BOX)

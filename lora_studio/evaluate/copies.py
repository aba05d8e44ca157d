"""Whether drawn images repeat training images: mirrored, cropped, compressed or with noise, too.

Two images are compared as signals: the normalised cross-correlation (Lewis 1995) of the drawn one with every
window of the training image, of several sizes, and of its mirror image. What is bright where in coarse
outline is taken out of both beforehand (the lowest frequencies of a discrete cosine transform), since images
of one kind share that. So 1 is the same image whatever its contrast, and two images of the same thing in two
places are far from it. Networks' features are made to ignore where things lie, and say less here.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

SIDE = 32  # pixels at which images are compared
SMALLEST = 22  # of a window: 0.69 of the side
COARSE = 3  # by so many of the lowest frequencies in each direction
COPY = 0.8  # from here on an image is a copy: see docs/evaluate.md for what reaches it
_QUIET = 0.2  # as added to the length of what is left, so that flat images are like nothing


def small(image: Image.Image) -> Tensor:
    """[3, SIDE, SIDE] in 0..1: squeezed to a square, as crops of a given share are crops of it again."""
    resized = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(resized, np.float32) / 255).permute(2, 0, 1)


def similarities(drawn: Tensor, training: Tensor) -> Tensor:
    """[N, 3, SIDE, SIDE] and [M, ...] -> [N, M] up to 1; windows are of the training images."""
    best = torch.full((len(drawn), len(training)), -1.0)
    for side in range(SMALLEST, SIDE + 1):
        shrunk = F.interpolate(drawn, size=(side, side), mode="bilinear", antialias=True)
        asked = _without_outline(shrunk.flatten(1), side)
        for number, one in enumerate(training):
            both = torch.stack([one, one.flip(-1)])
            windows = F.unfold(both, side).transpose(1, 2).flatten(0, 1)
            found = (_without_outline(windows, side) @ asked.T).amax(dim=0)
            best[:, number] = torch.maximum(best[:, number], found)
    return best


def _without_outline(rows: Tensor, side: int) -> Tensor:
    """[N, 3 * side * side] -> the same without the lowest frequencies of each channel, of length 1."""
    basis, channels = _lowest(side), rows.unflatten(1, (3, side * side))
    left = (channels - (channels @ basis.T) @ basis).flatten(1)
    return left / (left.norm(dim=1, keepdim=True) + _QUIET)


@cache
def _lowest(side: int) -> Tensor:
    """[COARSE ** 2, side * side] orthonormal."""
    places = torch.arange(side) + 0.5
    waves = torch.stack([torch.cos(math.pi * places * one / side) for one in range(COARSE)])
    waves = waves / waves.norm(dim=1, keepdim=True)
    return torch.einsum("ax,by->abxy", waves, waves).reshape(COARSE**2, side * side)


def threshold_of(training: Tensor, references: Tensor) -> float:
    """From where on an image is a copy: `COPY`, or more where images that no one trained on come as near.

    `references` are such. Those that are training images themselves are as near as can be and say nothing.
    """
    if not len(references) or not len(training):
        return COPY
    nearest = similarities(references, training).amax(dim=1)
    return max([COPY, *(one + 0.02 for one in nearest.tolist() if one < 0.97)])

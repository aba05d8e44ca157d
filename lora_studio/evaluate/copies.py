"""Whether drawn images repeat training images: mirrored, cropped, compressed or with noise, too.

Two images are compared as signals: the normalised cross-correlation (Lewis 1995) of the drawn one with every
window of the training image, of several sizes, and of its mirror image; then the best window is fitted more
finely. What is bright where in coarse outline is taken out of both beforehand (the lowest frequencies of a
discrete cosine transform), since images of one kind share that. So 1 is the same image whatever its contrast,
and two images of the same thing in two places are far from it. Networks' features are made to ignore where
things lie, and say less here.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

SIDE, SEARCHED_SIDE = 48, 24  # pixels at which images are compared, and at which windows are looked for
SMALLEST = 16  # of the windows there: two thirds of a side
OUTLINE = 3  # so many of the lowest frequencies in each direction are left out
COPY = 0.857  # from here on it is a copy: 500 other scenes of one subject reach 0.848, crops to 70 % 0.867
LEAST, ABOVE = 0.62, 0.1  # drawn copies are less sharp than planted ones: they reach 0.62 to 0.89
BEYOND = 0.02  # by which a copy is nearer than what was not trained on
_SAME = 0.97  # a reference image that is as near is a training image itself
_QUIET = 0.05  # added to the length of what is left, so that flat images are like nothing
_FINER = (0.8, 0.3, 0.12)  # pixels of SEARCHED_SIDE, by which a window is moved and resized when it is fitted


def small(image: Image.Image) -> Tensor:
    """[3, SIDE, SIDE] in 0..1: squeezed to a square, as crops of a given share are crops of it again."""
    resized = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(resized, np.float32) / 255).permute(2, 0, 1)


def nearest(drawn: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    """[N, 3, SIDE, SIDE] and [M, ...] with M > 0 -> similarities up to 1, and which training image, both [N].

    Windows are of the training images: a drawn image that shows a part of one is found.
    """
    if not len(drawn):
        return torch.zeros(0), torch.zeros(0, dtype=torch.long)
    found, windows = _searched(drawn, training)
    best, which = found.max(dim=1)
    fitted = [
        _fitted(image, training[number], windows[row, number])
        for row, (image, number) in enumerate(zip(drawn, which.tolist(), strict=True))
    ]
    return torch.maximum(best, torch.tensor(fitted)), which


def threshold_of(training: Tensor, references: Tensor) -> float:
    """From where on an image is a copy: by `ABOVE` nearer than training images come to one another.

    Within `LEAST` and `COPY`; above that only where references, which no one trained on, come as near. Those
    that are training images themselves are as near as can be and say nothing, as do training images that are
    there twice.
    """
    if len(training) < 2:
        return COPY
    rows = range(len(training))
    kin = [nearest(training[[row]], training[[one for one in rows if one != row]])[0].item() for row in rows]
    between = max([LEAST, *(one + ABOVE for one in kin if one < _SAME)])
    found = nearest(references, training)[0].tolist()
    others = [one for one in found if one < _SAME]
    return max(
        [min(COPY, max([between, *(one + ABOVE for one in others)])), *(one + BEYOND for one in others)]
    )


def _searched(drawn: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    """[N, M] similarities, and [N, M, 4] the window: mirrored or not, its centre in -1..1, its share."""
    side = SEARCHED_SIDE
    asked, searched = (F.interpolate(one, size=(side, side), mode="area") for one in (drawn, training))
    both = torch.stack([searched, searched.flip(-1)], dim=1)
    best, where = torch.full((len(drawn), len(training)), -2.0), torch.zeros(len(drawn), len(training), 4)
    for window in range(SMALLEST, side + 1):
        sized = F.interpolate(asked, size=(window, window), mode="bilinear", antialias=True)
        wanted, places = _without_outline(sized).T, side - window + 1
        for number, images in enumerate(both):
            parts = F.unfold(images, window).transpose(1, 2).reshape(-1, 3, window, window)
            score, place = (_without_outline(parts) @ wanted).max(dim=0)
            row, column = place % places**2 // places, place % places
            centre = [(one + window / 2) / side * 2 - 1 for one in (column, row)]
            share = torch.full_like(score, window / side)
            described = torch.stack([(place // places**2).float(), *centre, share], dim=-1)
            better = score > best[:, number]
            best[better, number], where[better, number] = score[better], described[better]
    return best, where


def _fitted(image: Tensor, training: Tensor, window: Tensor) -> float:
    """The similarity to the best window near this one, at `SIDE`."""
    shown = training.flip(-1) if window[0] else training
    wanted, best, place = _without_outline(image[None])[0], -2.0, window[1:]
    shifts = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    for step in _FINER:
        moved = torch.cartesian_prod(shifts, shifts, shifts[1:4]) * step / SEARCHED_SIDE
        tried = place + moved
        tried[:, 2].clamp_(max=1.0)
        scores = _without_outline(_windows(shown, tried)) @ wanted
        if (score := scores.max().item()) > best:
            best, place = score, tried[scores.argmax()]
    return best


def _windows(image: Tensor, places: Tensor) -> Tensor:
    """[3, SIDE, SIDE] and [K, 3] of centres and shares -> [K, 3, SIDE, SIDE]."""
    zooms = torch.zeros(len(places), 2, 3)
    zooms[:, 0, 0] = zooms[:, 1, 1] = places[:, 2]
    zooms[:, :, 2] = places[:, :2]
    size = [len(places), *image.shape]
    grid = F.affine_grid(zooms, size, align_corners=False)
    return F.grid_sample(image.expand(size), grid, padding_mode="border", align_corners=False)


def _without_outline(images: Tensor) -> Tensor:
    """[N, 3, S, S] -> [N, 3 * S * S] without the lowest frequencies of each channel, of length 1."""
    basis, channels = _lowest(images.shape[-1]), images.flatten(2)
    left = (channels - (channels @ basis.T) @ basis).flatten(1)
    return left / (left.norm(dim=1, keepdim=True) + _QUIET)


@cache
def _lowest(side: int) -> Tensor:
    """[OUTLINE ** 2, side * side] orthonormal."""
    places = torch.arange(side) + 0.5
    waves = torch.stack([torch.cos(math.pi * places * one / side) for one in range(OUTLINE)])
    waves = waves / waves.norm(dim=1, keepdim=True)
    return torch.einsum("ax,by->abxy", waves, waves).reshape(OUTLINE**2, side * side)

"""Colours, contrast and sharpness of images, and which are beyond all that base and references show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor, tensor

SIDE = 128  # pixels of the longer side at which images are looked at; smaller ones as they are
CLIPPED = 4  # levels of 255 from either end
MARGIN = 0.35  # of the spread between the least and the most of base and references, beyond these
ASPECTS = ("clipped", "contrast", "saturation", "sharpness")
_LEAST_SPREAD = tensor([0.05, 0.05, 0.05, 0.02])  # in which images that are all alike may differ


def aspects_of(image: Image.Image) -> list[float]:
    """`ASPECTS` of an image: the share of values at an end of their range; the standard deviation of the
    brightness (0..0.5); the mean distance of colours from grey (0..1); and the mean absolute Laplacian of
    the brightness, which noise and ringing raise.
    """
    image = image.convert("RGB")
    image.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    values = np.asarray(image, np.float64)
    clipped = np.mean((values <= CLIPPED) | (values >= 255 - CLIPPED))
    luma = values @ (0.299 / 255, 0.587 / 255, 0.114 / 255)
    saturation = (values.max(axis=-1) - values.min(axis=-1)).mean() / 255
    laplacian = 4 * luma[1:-1, 1:-1] - luma[:-2, 1:-1] - luma[2:, 1:-1] - luma[1:-1, :-2] - luma[1:-1, 2:]
    return [float(clipped), float(luma.std()), float(saturation), float(np.abs(laplacian).mean())]


def burnt(images: Tensor, usual: Sequence[Tensor]) -> Tensor:
    """[..., 4] -> [...] 0 or 1: whether any aspect is above the most of `usual` ([N, 4] each) and a margin.

    Only above: a burnt image is too much of something; too little, such as a blur, is seen as lost fidelity.
    """
    highest = tensor([[float("-inf")] * len(ASPECTS)]).amax(dim=0)
    for one in usual:
        if len(one):
            most, least = one.amax(dim=0), one.amin(dim=0)
            highest = highest.maximum(most + MARGIN * (most - least).maximum(_LEAST_SPREAD))
    return (images > highest).any(dim=-1).float()

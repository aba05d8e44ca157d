"""Networks that say how alike two images are, and how well an image fits a text.

An evaluation's figures depend on which one it is, so every result names it and the SHA-256 of its weights.
None of them is ever taken in place of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from PIL.Image import Image
from torch import Tensor

from lora_studio.pocket import EMBEDDED, POCKET
from lora_studio.quiet import without_loading_bars
from lora_studio.registry import Registry


class ImageEncoder(Protocol):
    """Of one or more images or texts: rows of length 1, float32 on the CPU, whose product is their cosine."""

    name: str
    """As it stands in `ENCODERS`."""
    digest: str
    """The SHA-256 of its weights' files."""

    def features(self, images: Sequence[Image]) -> Tensor:
        """[N, D] for comparing images: what they show, and how they are drawn (`pooling.features_of`)."""

    def aligned(self, images: Sequence[Image]) -> Tensor | None:
        """[N, E] in the space that it shares with `texts`; None of a network that knows images alone."""

    def texts(self, texts: Sequence[str]) -> Tensor | None:
        """[N, E], of captions cut to the network's length; None as above."""


class EncoderLoader(Protocol):
    """What `ENCODERS` holds."""

    def __call__(self, model: str, device: torch.device) -> ImageEncoder:
        """From a folder or a hub id; from "" as it is usual for its kind. Raises StudioError."""


ENCODERS = Registry[EncoderLoader](
    "encoder",
    {
        "pocket": "lora_studio.evaluate.encoders.networks:PocketEncoder",
        "clip": "lora_studio.evaluate.encoders.networks:ClipEncoder",
        "siglip2": "lora_studio.evaluate.encoders.networks:Siglip2Encoder",
        "dinov2": "lora_studio.evaluate.encoders.networks:Dinov2Encoder",
    },
)


def usual_encoder(base: str) -> str:
    """The name of the one that a base's images are compared by, unless another is asked for.

    The pocket bases draw what only their own encoders know; of all others it is CLIP's.
    """
    return "pocket" if base == POCKET or base in EMBEDDED else "clip"


def load_encoder(name: str, model: str = "", device: torch.device | str = "cpu") -> ImageEncoder:
    """The encoder of that name, from `model`: a folder, a hub id, or "" for what is usual of that name.

    Raises RecipeError for an unknown name, and StudioError, with the layout of the folder that it needs,
    where its files are neither here nor to be had. It never takes another one instead.
    """
    load = ENCODERS[name]
    with without_loading_bars():
        return load(model, torch.device(device))

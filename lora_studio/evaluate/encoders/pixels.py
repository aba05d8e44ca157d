"""Images as an encoder takes them, by Pillow alone: libraries' own ways differ with what is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lora_studio.errors import StudioError

Triple = tuple[float, float, float]
MOST_PIXELS = 4096  # a side


@dataclass(frozen=True)
class Pixels:
    """Resize, crop in the middle, and normalise, as a `preprocessor_config.json` says it."""

    size: tuple[int, int] | int  # height and width; or the shorter side, and the other in proportion
    crop: tuple[int, int] | None  # height and width
    resample: Image.Resampling
    factor: float
    mean: Triple
    deviation: Triple

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """[N, 3, H, W] in float32. Raises ValueError for images that end up in different sizes."""
        return torch.stack([self._one(image.convert("RGB")) for image in images])

    def _one(self, image: Image.Image) -> Tensor:
        height, width = self._sides(image)
        image = image.resize((width, height), self.resample)
        if self.crop is not None:
            high, wide = self.crop
            top, left = (height - high) // 2, (width - wide) // 2
            image = image.crop((left, top, left + wide, top + high))  # black where it is smaller
        levels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() * self.factor
        mean, deviation = (torch.tensor(one).view(3, 1, 1) for one in (self.mean, self.deviation))
        return (levels - mean) / deviation

    def _sides(self, image: Image.Image) -> tuple[int, int]:
        """Height and width that it is resized to."""
        if isinstance(self.size, tuple):
            return self.size
        shorter = min(image.size)
        height, width = (int(self.size * side / shorter) for side in (image.height, image.width))
        return height, width


def pixels_of(values: Mapping[str, Any], path: str) -> Pixels:
    """What a `preprocessor_config.json` says. Raises StudioError with its `path` if it makes no sense."""
    try:
        size, crop = _size(values["size"]), values.get("crop_size") if values.get("do_center_crop") else None
        mean, deviation = (_triple(values[key]) for key in ("image_mean", "image_std"))
        resample = Image.Resampling(values.get("resample", Image.Resampling.BICUBIC))
        factor = float(values.get("rescale_factor", 1 / 255))
        cropped = None if crop is None else _square(_size(crop))
        ends = size if cropped is None else cropped
        if isinstance(ends, int):
            raise ValueError("without a crop a size needs both height and width")
        if 0 in deviation or not 0 < factor <= 1:
            raise ValueError("image_std and rescale_factor must not be 0")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else f"cannot be followed ({error})"
        raise StudioError(f"{path} {reason}; download the encoder again.") from None
    return Pixels(size, cropped, resample, factor, mean, deviation)


def _size(value: Any) -> tuple[int, int] | int:
    if isinstance(value, int):
        return _side(value)
    if "shortest_edge" in value:
        return _side(value["shortest_edge"])
    return _side(value["height"]), _side(value["width"])


def _square(size: tuple[int, int] | int) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


def _side(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MOST_PIXELS:
        raise ValueError(f"a side of {value!r} pixels; 1 to {MOST_PIXELS} are possible")
    return value


def _triple(value: Any) -> Triple:
    red, green, blue = map(float, value)
    return red, green, blue

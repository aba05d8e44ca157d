"""From image files to what a VAE reads."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lora_studio.data.images.decode import framed, reopen
from lora_studio.data.manifest import Record

READY_BYTES = 512 * 2**20  # some 680 images of 512x512


def pixels_of(record: Record) -> Tensor:
    """[3, H, W] in -1..1: the image resized, mirrored and cropped as the record says.

    Raises DatasetError if the file is not the one that was scanned.
    """
    image = reopen(record.path, record.sha256, background=record.background or "white").image
    return as_tensor(resized_and_cropped(image, record))


def resized_and_cropped(image: Image.Image, record: Record) -> NDArray[np.uint8]:
    """[H, W, 3]: the decoded image in the shape that the record asks for."""
    assert record.resize is not None and record.crop is not None, record.name
    return np.array(framed(image, record.resize, record.crop, flip=record.flip))


def as_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """[H, W, 3] in 0..255 -> [3, H, W] in -1..1."""
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1


class ReadyPixels:
    """Images that the scan, which decodes them anyway, resizes at once, so that none is decoded twice.

    `key_of` says under which name an image's pixels are asked for later, None if they will not be: pixels
    that are never asked for cost a resize, wrong ones cannot come about. Holds `max_bytes` at most; images
    beyond that are decoded again when they are encoded. Safe for several threads.
    """

    def __init__(self, key_of: Callable[[Record], str | None], *, max_bytes: int = READY_BYTES) -> None:
        self._key_of, self._free_bytes = key_of, max_bytes
        self._pixels: dict[str, NDArray[np.uint8]] = {}
        self._lock = threading.Lock()

    def offer(self, record: Record, image: Image.Image) -> None:
        """An image that has just been decoded, with the record that says how to resize and crop it."""
        assert record.bucket is not None, record.name
        key, num_bytes = self._key_of(record), 3 * record.bucket.width * record.bucket.height
        with self._lock:
            if key is None or key in self._pixels or num_bytes > self._free_bytes:
                return
            self._free_bytes -= num_bytes
        self._pixels[key] = resized_and_cropped(image, record)

    def take(self, key: str) -> Tensor | None:
        """[3, H, W] in -1..1, and forgotten; None if they are not there."""
        pixels = self._pixels.pop(key, None)
        return None if pixels is None else as_tensor(pixels)

"""Small copies of images for the page: decoded under the dataset's limits, kept in the cache folder."""

from __future__ import annotations

import hashlib
import os
import threading
from contextlib import suppress
from io import BytesIO
from pathlib import Path

from PIL import Image

from lora_studio.data.cache import THUMBNAILS
from lora_studio.data.images import read_bytes
from lora_studio.data.images.decode import decode
from lora_studio.files import cache_folder, write_atomically

SIDES = (256, 1600)  # pixels of the longer one: of the grid, and of the view of one image
_VERSION = "1"
_QUALITY = 82
_AT_ONCE = threading.BoundedSemaphore(2)  # large images take hundreds of megabytes while they are decoded


def thumbnail(path: Path, side: int = SIDES[0]) -> bytes:
    """A JPEG of the image, upright, no side longer than `side`, without what its file says beside pixels.

    Raises UnreadableFile with the reason, for files that are gone, damaged, too large or no images.
    """
    kept = _place(path, side)
    if kept is not None:
        with suppress(OSError):
            return kept.read_bytes()
    with _AT_ONCE:
        made = _made(path, side)
    if kept is not None:
        with suppress(OSError):  # a full disk, or one that may not be written to
            write_atomically(kept, made)
    return made


def _place(path: Path, side: int) -> Path | None:
    """By what the system says of the file, so that one that was changed gets another; None if it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    facts = (_VERSION, side, os.path.realpath(path), status.st_ino, status.st_size, status.st_mtime_ns)
    name = hashlib.sha256("\x1f".join(map(str, facts)).encode("utf-8", "surrogateescape")).hexdigest()
    return cache_folder() / THUMBNAILS / f"{name}.jpg"


def _made(path: Path, side: int) -> bytes:
    image = decode(read_bytes(path), background="white", enough_pixels=side * side).image
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    written = BytesIO()
    Image.frombytes("RGB", image.size, image.tobytes()).save(written, "JPEG", quality=_QUALITY)
    return written.getvalue()

"""Untrusted picture files in, plain RGB pictures out."""

from __future__ import annotations

import os
import stat
import warnings
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from lora_studio.errors import DatasetError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
FORMATS_IN_WORDS = "JPEG, PNG, WebP or BMP"
MAX_FILE_BYTES = 200_000_000
MAX_PIXELS = 89_478_485  # where Pillow itself begins to warn of a decompression bomb
NOT_A_PICTURE = f"not a {FORMATS_IN_WORDS} picture"
_PLAIN_MODES = ("RGB", "L", "1", "P", "CMYK", "YCbCr")


class UnreadablePicture(DatasetError):
    """The file is no picture that can be used; the message is the reason alone, without the file's name."""


def read_bytes(path: Path) -> bytes:
    """The whole file. Raises UnreadablePicture if it is too large, no regular file or not readable."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise UnreadablePicture("not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            size, limit = status.st_size / 1e6, MAX_FILE_BYTES / 1e6
            raise UnreadablePicture(f"{size:.0f} MB; at most {limit:.0f} MB are read")
        return path.read_bytes()
    except OSError as error:
        raise UnreadablePicture(f"cannot be read: {error.strerror or error}") from None


def decode(data: bytes) -> Image.Image:
    """The bytes of a file -> an RGB picture, fully decoded and turned upright. Raises UnreadablePicture."""
    if not data:
        raise UnreadablePicture("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a decoder's remarks on odd metadata; the pixels are what counts
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _decode(data)
    except UnreadablePicture:
        raise
    except UnidentifiedImageError:
        raise UnreadablePicture(NOT_A_PICTURE) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UnreadablePicture(f"more than {MAX_PIXELS / 1e6:.0f} megapixels") from None
    except (
        Exception
    ) as error:  # decoders raise nearly anything at damaged bytes: OSError, SyntaxError, struct.error
        raise UnreadablePicture(f"damaged: {error}") from None


def load_picture(path: Path | str) -> Image.Image:
    """The picture in the file as RGB, upright, transparency on white. Raises DatasetError naming the file."""
    try:
        return decode(read_bytes(Path(path)))
    except UnreadablePicture as reason:
        message = (
            f"{os.fspath(path)} cannot be used ({reason}); save it again as {FORMATS_IN_WORDS} or remove it."
        )
        raise DatasetError(message) from None


def _decode(data: bytes) -> Image.Image:
    with Image.open(BytesIO(data), formats=FORMATS) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            megapixels = picture.width * picture.height / 1e6
            raise UnreadablePicture(
                f"{megapixels:.0f} megapixels; at most {MAX_PIXELS / 1e6:.0f} are decoded"
            )
        picture.load()
        return _to_rgb(ImageOps.exif_transpose(picture))


def _to_rgb(picture: Image.Image) -> Image.Image:
    """Any mode that a whitelisted format can have -> RGB."""
    if picture.mode.startswith("I"):  # 16-bit grey, which convert("RGB") would clip at 255 instead of scaling
        return picture.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L").convert("RGB")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if picture.mode in _PLAIN_MODES:
        return picture.convert("RGB")
    raise UnreadablePicture(f"pixels of the kind {picture.mode!r} are not supported")

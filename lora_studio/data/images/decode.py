"""The bytes of an untrusted image file -> an upright image in sRGB and its opacity, decoded under limits."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TypeVar

from PIL import Image, ImageChops, ImageFile, ImageOps, JpegImagePlugin, UnidentifiedImageError, features

from lora_studio.data.images import UnreadableFile, read_bytes
from lora_studio.data.images.colours import to_srgb
from lora_studio.data.images.threads import quiet_decoders
from lora_studio.errors import DatasetError, reason_of
from lora_studio.text import shown

FORMATS_IN_WORDS = "JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF or HEIC"
MAX_PIXELS = 89_478_485  # where Pillow itself begins to warn of a decompression bomb
# JPEGs beyond that are decoded at a half or less of their sides. Of a progressive one libjpeg holds up to six
# bytes a pixel meanwhile, so that this is 1.5 GB; cameras have 150 megapixels, telephones 200.
MAX_JPEG_PIXELS = 250_000_000
# Their decoders hold 16 and up to 12 bytes a pixel, so that these are a gigabyte.
_MOST_PIXELS = {"JPEG": MAX_JPEG_PIXELS, "WEBP": 56_000_000, "AVIF": 80_000_000}
_TOO_LARGE = "more than {:.0f} megapixels"
_LARGE_PIXELS = 24_000_000  # threads decode only one image of more at a time, for the sake of the memory
_one_large = threading.Lock()
NOT_AN_IMAGE = f"not a {FORMATS_IN_WORDS} image"
LISTED = "listed in "  # begins the reason of what only a metadata file names
_NO_READER = "a HEIC image, whose reader pillow-heif does not work here"
FIRST_ONLY = "moving or of several pages: only the first image in it is used"
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF")
# An image more than twice this many times larger than wanted is first shrunken by a whole number, to no less
# than this: two to seven times faster, and at least 48 dB from LANCZOS alone (bicubic: from 39 dB). Above 2,
# so that one that is four times larger, as the sample images are, is left to LANCZOS.
_REDUCING_GAP = 2.01
_JPEG_BEGINS = b"\xff\xd8\xff"
_BEGINNINGS = {  # of a file that is a format's, whatever follows
    rb"\x89PNG\r\n": "PNG",
    _JPEG_BEGINS: "JPEG",
    rb"GIF8[79]a": "GIF",
    rb"RIFF....WEBP": "WebP",
    rb"II\*\x00|MM\x00\*": "TIFF",
    rb"....ftyp(?:avif|avis)": "AVIF",
    rb"....ftyp(?:heic|heix|mif1|msf1)": "HEIC",
}
# Marks of HEIC in an ISO media file's "ftyp" box; AVIF has others.
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
T = TypeVar("T")


@dataclass(frozen=True)
class DecodedImage:
    image: Image.Image  # RGB in sRGB; transparency is laid on the background
    opacity: Image.Image | None  # L of the same size, 255 is opaque; None if all of it is
    note: str  # what a user should know about how it was read, or ""
    size: tuple[int, int]  # width, height of the file's pixels, upright
    shrunk: int = 1  # 2, 4 or 8: `image` has this fraction of the sides
    luma_table: Sequence[int] | None = None  # a JPEG's quantisation


def decode(data: bytes, *, background: str = "white", enough_pixels: int = 0) -> DecodedImage:
    """The bytes of a file, fully decoded; clear parts get the background, a name or "#rrggbb".

    A JPEG with more than MAX_PIXELS, or from which at least `enough_pixels` remain, if that is not 0, is
    decoded at a half, a quarter or an eighth of its sides, which takes less time and memory; all of its bytes
    are read. Formats, the number of pixels and Pillow's own warnings of decompression bombs are checked
    before pixels are decoded. Raises UnreadableFile.
    """
    if not data:
        raise UnreadableFile("the file is empty")
    try:
        with quiet_decoders():
            return _decode(data, background, enough_pixels)
    except UnreadableFile:
        raise
    except UnidentifiedImageError:
        raise UnreadableFile(_unidentified(data)) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UnreadableFile(_TOO_LARGE.format(MAX_PIXELS / 1e6)) from None
    except Exception as error:  # at damaged bytes decoders raise nearly anything, even SyntaxError
        raise UnreadableFile(f"damaged: {shown(reason_of(error), limit=150)}") from None


def data_url(image: Image.Image, *, quality: int) -> str:
    """An RGB image as "data:image/jpeg;base64,...", of its pixels alone: files also say where and by whom."""
    written = BytesIO()
    Image.frombytes("RGB", image.size, image.tobytes()).save(written, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode('ascii')}"


def reopen(path: str, sha256: str, *, background: str) -> DecodedImage:
    """The image in a file that was scanned before. Raises DatasetError if it has changed."""
    return _reopened(path, sha256, lambda data: decode(data, background=background))


def reopen_luma(path: str, sha256: str) -> Image.Image:
    """The luma alone, upright, without its colour profile: of a JPEG in half the time. Raises as `reopen`."""
    return _reopened(path, sha256, _luma)


def _reopened(path: str, sha256: str, read: Callable[[bytes], T]) -> T:
    try:
        data = read_bytes(Path(path))
        if hashlib.sha256(data).hexdigest() != sha256:
            raise DatasetError(f"{path} has changed since the folder was scanned; start the run again.")
        return read(data)
    except UnreadableFile as reason:
        advice = f"put it back as {FORMATS_IN_WORDS}, or start the run again without it"
        raise DatasetError(f"{path} can no longer be used ({reason}); {advice}.") from None


def _luma(data: bytes) -> Image.Image:
    with quiet_decoders(), _open(data) as opened:
        opened.draft("L", None)
        _turn_upright(opened)
        return opened.convert("L")


def load_image(path: Path | str, *, background: str = "white") -> Image.Image:
    """The image in the file as RGB, upright, on the background. Raises DatasetError naming the file."""
    try:
        return decode(read_bytes(Path(path)), background=background).image
    except UnreadableFile as reason:
        raise DatasetError(
            f"{os.fspath(path)} cannot be used ({reason}); {advice_for(str(reason))}."
        ) from None


def advice_for(reason: str) -> str:
    """What to do about an image that is unreadable for this reason; without a full stop."""
    if reason in [_TOO_LARGE.format(limit / 1e6) for limit in (MAX_PIXELS, *_MOST_PIXELS.values())]:
        return "make it smaller, such as 8192 pixels on its longer side, or save it as JPEG"
    if reason.startswith(LISTED):
        return "correct its line in that list, or remove it"
    if reason == _NO_READER:
        return "install that again (pip install pillow-heif), or save it as JPEG"
    return "save it again as PNG or JPEG from its original, or remove it"


def framed(
    image: Image.Image,
    resize: tuple[int, int],
    crop: tuple[int, int, int, int],
    *,
    flip: bool = False,
    resample: Image.Resampling = Image.Resampling.LANCZOS,
) -> Image.Image:
    """The part `crop` of the image resized to `resize` and, if `flip`, mirrored; only that part is made."""
    left, top, right, bottom = crop
    if flip:
        left, right = resize[0] - right, resize[0] - left
    across, down = image.width / resize[0], image.height / resize[1]
    box = (left * across, top * down, min(right * across, image.width), min(bottom * down, image.height))
    part = image.resize((right - left, bottom - top), resample, box, reducing_gap=_REDUCING_GAP)
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else part


def _decode(data: bytes, background: str, enough_pixels: int) -> DecodedImage:
    with _open(data) as opened:
        width, height = opened.size
        shrunk = _shrink(opened, enough_pixels)
        buffered = width * height if "progressive" in opened.info else opened.width * opened.height
        with _one_large if buffered > _LARGE_PIXELS else nullcontext():
            opened.load()
            vars(opened).pop("_decoder", None)  # of WebP and AVIF, with memory for further images
            drafted = opened.size
            if shrunk == 1:
                width, height = drafted  # of a HEIC image the header may say otherwise
            turn_note = _turn_upright(opened)
            rgb, opacity, colour_note = to_srgb(opened)
            notes = [_frame_note(opened), _shrink_note(width * height, shrunk), turn_note, colour_note]
        table = getattr(opened, "quantization", {}).get(0)
    size = (width, height) if opened.size == drafted else (height, width)
    if opacity is not None:
        rgb.paste(background, (0, 0), mask=ImageChops.invert(opacity))
    return DecodedImage(rgb, opacity, "; ".join(filter(None, notes)), size, shrunk, table)


def _open(data: bytes) -> ImageFile.ImageFile:
    """Only its header is read. Raises what Pillow does, also for more pixels than are decoded."""
    formats = (*_FORMATS, "HEIF") if _is_heic(data) and _can_read_heic() else _FORMATS
    try:
        opened = Image.open(BytesIO(data), formats=formats)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        if not data.startswith(_JPEG_BEGINS):
            raise
        opened = JpegImagePlugin.JpegImageFile(BytesIO(data))
    limit = _MOST_PIXELS.get(opened.format or "", MAX_PIXELS)
    if opened.width * opened.height > limit:
        raise UnreadableFile(_TOO_LARGE.format(limit / 1e6))
    return opened


def _shrink(opened: ImageFile.ImageFile, enough_pixels: int) -> int:
    """Have a JPEG decoded at a fraction of its sides if it may or must be; the fraction's denominator."""
    width, height = opened.size
    if opened.format not in ("JPEG", "MPO"):
        return 1
    pixels = width * height
    allowed = [one for one in (1, 2, 4, 8) if pixels <= MAX_PIXELS * one**2]
    wanted = [one for one in allowed if enough_pixels and pixels >= enough_pixels * one**2]
    shrunk = wanted[-1] if wanted else allowed[0]
    opened.draft(None, (max(1, width // shrunk), max(1, height // shrunk)))
    return shrunk


def _shrink_note(pixels: int, shrunk: int) -> str:
    if pixels <= MAX_PIXELS:
        return ""
    return f"{pixels / 1e6:.0f} megapixels, so it is decoded at 1/{shrunk} of its width and height"


def _turn_upright(image: Image.Image) -> str:
    """Turn it in place as its EXIF data say; a note if they cannot be read, as the pixels are still good."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # as with pixels, damaged EXIF data raise nearly anything
        return "its EXIF data are damaged, so it may not be upright"
    return ""


def _frame_note(image: Image.Image) -> str:
    """That there is more than one image in the file; a camera's MPO holds only previews besides."""
    try:
        several = image.format != "MPO" and getattr(image, "is_animated", False)
    except Exception:  # looking for the second frame may find it damaged; the first one is not
        several = True
    return FIRST_ONLY if several else ""


def _is_heic(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS


@cache
def _can_read_heic() -> bool:
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)
    return True


def _unidentified(data: bytes) -> str:
    if _is_heic(data) and not _can_read_heic():
        return _NO_READER
    if data[4:8] == b"ftyp" and not features.check("avif"):
        return "maybe an AVIF image, which this build of Pillow cannot read: pip install -U pillow"
    begun = next((name for start, name in _BEGINNINGS.items() if re.match(start, data, re.DOTALL)), "")
    return f"a damaged {begun} file: it does not go on as one" if begun else NOT_AN_IMAGE

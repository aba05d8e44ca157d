"""The bytes of an untrusted image file -> an upright image in sRGB and its opacity, decoded under limits."""

from __future__ import annotations

import base64
import hashlib
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError, features

from lora_studio.data.images import UnreadableFile, read_bytes
from lora_studio.errors import DatasetError

FORMATS_IN_WORDS = "JPEG, PNG, WebP, BMP, TIFF, GIF or AVIF"
MAX_PIXELS = 89_478_485  # where Pillow itself begins to warn of a decompression bomb
_LARGE_PIXELS = 24_000_000  # threads decode only one image of more at a time, for the sake of the memory
_one_large = threading.Lock()
NOT_AN_IMAGE = f"not a {FORMATS_IN_WORDS} image"
FIRST_ONLY = "moving or of several pages: only the first image in it is used"
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF")
# An image more than twice this many times larger than wanted is first shrunken by a whole number, to no less
# than this: two to seven times faster, and at least 48 dB from LANCZOS alone (bicubic: from 39 dB). Above 2,
# so that one that is four times larger, as the sample images are, is left to LANCZOS.
_REDUCING_GAP = 2.01
# Marks of HEIC in an ISO media file's "ftyp" box; AVIF has others.
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


@dataclass(frozen=True)
class DecodedImage:
    image: Image.Image  # RGB in sRGB; transparency is laid on the background
    opacity: Image.Image | None  # L of the same size, 255 is opaque; None if all of it is
    note: str  # what a user should know about how it was read, or ""


def decode(data: bytes, *, background: str = "white") -> DecodedImage:
    """The bytes of a file, fully decoded; clear parts get the background, a name or "#rrggbb".

    Formats, the number of pixels and Pillow's own warnings of decompression bombs are checked before pixels
    are decoded. Raises UnreadableFile.
    """
    if not data:
        raise UnreadableFile("the file is empty")
    try:
        with quiet_decoders():
            return _decode(data, background)
    except UnreadableFile:
        raise
    except UnidentifiedImageError:
        raise UnreadableFile(_unidentified(data)) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UnreadableFile(f"more than {MAX_PIXELS / 1e6:.0f} megapixels") from None
    except Exception as error:  # at damaged bytes decoders raise nearly anything, even SyntaxError
        raise UnreadableFile(f"damaged: {error}") from None


def data_url(image: Image.Image, *, quality: int) -> str:
    """An RGB image as "data:image/jpeg;base64,...", of its pixels alone: files also say where and by whom."""
    written = BytesIO()
    Image.frombytes("RGB", image.size, image.tobytes()).save(written, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode('ascii')}"


def reopen(path: str, sha256: str, *, background: str) -> tuple[DecodedImage, bytes]:
    """The image in a file that was scanned before, and its bytes. Raises DatasetError if it has changed."""
    try:
        data = read_bytes(Path(path))
        if hashlib.sha256(data).hexdigest() != sha256:
            raise DatasetError(f"{path} has changed since the folder was scanned; start the run again.")
        return decode(data, background=background), data
    except UnreadableFile as reason:
        advice = f"put it back as {FORMATS_IN_WORDS}, or start the run again without it"
        raise DatasetError(f"{path} can no longer be used ({reason}); {advice}.") from None


def load_image(path: Path | str, *, background: str = "white") -> Image.Image:
    """The image in the file as RGB, upright, on the background. Raises DatasetError naming the file."""
    try:
        return decode(read_bytes(Path(path)), background=background).image
    except UnreadableFile as reason:
        advice = f"save it again as {FORMATS_IN_WORDS} or remove it"
        raise DatasetError(f"{os.fspath(path)} cannot be used ({reason}); {advice}.") from None


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


def _decode(data: bytes, background: str) -> DecodedImage:
    formats = (*_FORMATS, "HEIF") if _is_heic(data) and _can_read_heic() else _FORMATS
    with Image.open(BytesIO(data), formats=formats) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            megapixels = opened.width * opened.height / 1e6
            raise UnreadableFile(f"{megapixels:.0f} megapixels; at most {MAX_PIXELS / 1e6:.0f} are decoded")
        with _one_large if opened.width * opened.height > _LARGE_PIXELS else nullcontext():
            opened.load()
            turn_note = _turn_upright(opened)
            rgb, opacity, colour_note = _to_srgb(opened)
            notes = [_frame_note(opened), turn_note, colour_note]
    if opacity is not None:
        clear, rgb = rgb, Image.new("RGB", rgb.size, background)
        rgb.paste(clear, mask=opacity)
    return DecodedImage(rgb, opacity, "; ".join(filter(None, notes)))


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


def _can_read_heic() -> bool:
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _unidentified(data: bytes) -> str:
    if _is_heic(data) and not _can_read_heic():
        return "a HEIC image; to read those: pip install pillow-heif"
    if data[4:8] == b"ftyp" and not features.check("avif"):
        return "maybe an AVIF image, which this build of Pillow cannot read: pip install -U pillow"
    return NOT_AN_IMAGE


_lock = threading.Lock()
_inside = 0
_outermost: warnings.catch_warnings[None] | None = None


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Remarks on odd metadata are not shown, those on decompression bombs are errors.

    Python's filters are one list for all threads, so they are changed by the first that enters and put back
    by the last that leaves.
    """
    global _inside, _outermost
    with _lock:
        _inside += 1
        if _inside == 1:
            _outermost = warnings.catch_warnings()
            _outermost.__enter__()
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _outermost is not None:
                _outermost.__exit__(None, None, None)
                _outermost = None


T = TypeVar("T")
R = TypeVar("R")

THREADS = max(1, min(8, os.cpu_count() or 1))  # more would hold more decoded images at a time


def in_threads(
    work: Callable[[T], R], items: Iterable[T], *, ahead: int = 4 * THREADS, threads: int = THREADS
) -> Iterator[R]:
    """What `work` returns for each item, in their order; at most `ahead` results wait to be taken.

    An exception of `work` is raised where its result would have been, and ends the rest.
    """
    source = iter(items)
    with quiet_decoders(), ThreadPoolExecutor(threads, thread_name_prefix="images") as pool:
        waiting: deque[Future[R]] = deque(pool.submit(work, item) for item in islice(source, ahead))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(work, item) for item in islice(source, 1))
                yield result
        finally:
            pool.shutdown(cancel_futures=True)


UNFIT_PROFILE = "its colour profile is unreadable or of another kind, and ignored"
_SOLID = {"L": "L", "1": "L", "RGB": "RGB", "CMYK": "CMYK", "P": "RGB", "YCbCr": "RGB"}
_MODE_OF_SPACE = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # ICC colour space -> Pillow's mode
_SRGB = ImageCms.createProfile("sRGB")


def _to_srgb(image: Image.Image) -> tuple[Image.Image, Image.Image | None, str]:
    """8-bit RGB in sRGB, opacity (L, 255 is opaque; None if all of it is), and a note or "".

    Raises UnreadableFile for pixels of a kind that cannot be shown truthfully.
    """
    profile = image.info.get("icc_profile")
    solid, opacity = _split(image)
    rgb, note = _through_profile(solid, profile) if profile else (solid.convert("RGB"), "")
    return rgb, None if opacity and opacity.getextrema() == (255, 255) else opacity, note


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours, of mode L, RGB or CMYK with 8 bits each, and the opacity if there is such a notion."""
    mode = image.mode
    if mode.startswith("I"):
        return _sixteen_bit(image)
    if mode in ("LA", "La") or (mode == "L" and "transparency" in image.info):
        grey, opacity = image.convert("LA").split()
        return grey, opacity
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return rgba.convert("RGB"), rgba.getchannel("A")
    if solid := _SOLID.get(mode):
        return image if solid == mode else image.convert(solid), None
    raise UnreadableFile(
        f"pixels of the kind {mode!r} are not supported; save it with 8 or 16 bits a channel"
    )


def _sixteen_bit(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Grey scaled from 0..65535 to 0..255; convert("L") would clip it at 255 instead."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise UnreadableFile("grey with more than 16 bits is not supported; save it with 8 or 16")
    grey = Image.fromarray((values.astype(np.float32) / 257 + 0.5).astype(np.uint8))
    clear = image.info.get("transparency")  # the one value that a PNG declares clear
    opacity = np.where(values == clear, 0, 255).astype(np.uint8) if isinstance(clear, int) else None
    return grey, None if opacity is None else Image.fromarray(opacity)


def _through_profile(image: Image.Image, profile: bytes) -> tuple[Image.Image, str]:
    """RGB as the ICC profile means it; without it, and with a note, if it does not fit."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if ImageCms.getProfileDescription(source).startswith("sRGB"):
            return image.convert("RGB"), ""
        mode = _MODE_OF_SPACE[source.profile.xcolor_space.strip()]
        if image.mode == "L" and mode == "RGB":  # a grey image saved by a program that works in RGB
            image = image.convert("RGB")
        if image.mode != mode:
            return image.convert("RGB"), UNFIT_PROFILE
        intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
        converted = ImageCms.profileToProfile(image, source, _SRGB, intent, "RGB", flags=flags)
        assert converted is not None  # it is only when converting in place
        return converted, ""
    except (ImageCms.PyCMSError, KeyError, OSError, TypeError, ValueError):
        return image.convert("RGB"), UNFIT_PROFILE

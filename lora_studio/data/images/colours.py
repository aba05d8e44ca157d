"""A decoded image of any mode and colour profile -> 8-bit RGB in sRGB and its opacity."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

from lora_studio.data.images import UnreadableFile

UNFIT_PROFILE = "its colour profile is unreadable or of another kind, and ignored"
_SOLID = {"L": "L", "1": "L", "RGB": "RGB", "CMYK": "CMYK", "P": "RGB", "YCbCr": "RGB"}
_MODE_OF_SPACE = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # ICC colour space -> Pillow's mode
_SRGB = ImageCms.createProfile("sRGB")


def to_srgb(image: Image.Image) -> tuple[Image.Image, Image.Image | None, str]:
    """8-bit RGB in sRGB, opacity (L, 255 is opaque; None if all of it is), and a note or "".

    Raises UnreadableFile for pixels of a kind that cannot be shown truthfully.
    """
    profile = image.info.get("icc_profile")
    solid, opacity = _split(image)
    rgb, note = _through_profile(solid, profile) if profile else (_rgb(solid), "")
    return rgb, None if opacity and opacity.getextrema() == (255, 255) else opacity, note


def _rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")  # which copies one that is RGB already


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours, of mode L, RGB or CMYK with 8 bits each, and the opacity if there is such a notion."""
    mode = image.mode
    if mode.startswith("I"):
        return _sixteen_bit(image)
    if mode in ("LA", "La") or (mode == "L" and "transparency" in image.info):
        grey, opacity = (image if mode == "LA" else image.convert("LA")).split()
        return grey, opacity
    if image.has_transparency_data:
        rgba = image if mode == "RGBA" else image.convert("RGBA")  # which copies one that is RGBA already
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
    scaled = values.astype(np.float32)
    scaled /= 257
    scaled += 0.5
    grey = Image.fromarray(scaled.astype(np.uint8))
    clear = image.info.get("transparency")  # the one value that a PNG declares clear
    opacity = np.where(values == clear, 0, 255).astype(np.uint8) if isinstance(clear, int) else None
    return grey, None if opacity is None else Image.fromarray(opacity)


def _through_profile(image: Image.Image, profile: bytes) -> tuple[Image.Image, str]:
    """RGB as the ICC profile means it; without it, and with a note, if it does not fit."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if ImageCms.getProfileDescription(source).startswith("sRGB"):
            return _rgb(image), ""
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

"""Colours against formulas: ICC profiles are written here byte by byte, and so are the odd PNGs."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from noise import grey_noise
from PIL import Image, ImageCms

from lora_studio.data.images.colours import UNFIT_PROFILE
from lora_studio.data.images.decode import decode
from lora_studio.errors import DatasetError

RAMP = np.arange(0, 256, 5, dtype=np.uint8)
# sRGB's red, green and blue as XYZ under D50 (IEC 61966-2-1, adapted as ICC profiles want it).
RED, GREEN, BLUE = (0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)
WHITE = (0.9642, 1.0, 0.8249)


def xyz(values) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH2x", 1, round(value * 256))


def text(words: bytes) -> bytes:
    return b"desc\0\0\0\0" + struct.pack(">I", len(words) + 1) + words + b"\0" + bytes(79)


def icc(space: bytes, tags: dict[bytes, bytes], *, kind: bytes = b"mntr", pcs: bytes = b"XYZ ") -> bytes:
    """An ICC 2.1 profile (ICC.1:2001-04) of these tags."""
    tags = {b"desc": text(b"made in a test"), b"cprt": text(b"none"), b"wtpt": xyz(WHITE), **tags}
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(body), len(data))
        body += data
    size = 128 + len(table) + len(body)
    header = struct.pack(">I4sI4s4s4s12s4s", size, b"lcms", 0x02100000, kind, space, pcs, bytes(12), b"acsp")
    header += bytes(68 - len(header)) + xyz(WHITE)[8:]
    return header + bytes(128 - len(header)) + table + body


def rgb_profile(red=RED, green=GREEN, blue=BLUE, power=1.0) -> bytes:
    tags = {b"rXYZ": xyz(red), b"gXYZ": xyz(green), b"bXYZ": xyz(blue)}
    return icc(b"RGB ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma(power)))


def srgb_curve(linear):
    """IEC 61966-2-1: linear light 0..1 -> stored 0..1."""
    return np.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055
    )


def read(image: Image.Image, kind: str = "PNG", **options) -> np.ndarray:
    stored = io.BytesIO()
    image.save(stored, kind, **options)
    return np.asarray(decode(stored.getvalue()).image).astype(int)


def test_a_linear_profile_is_turned_into_srgb():
    ramp = Image.fromarray(np.stack([RAMP] * 3, axis=-1)[None])
    shown = read(ramp, icc_profile=rgb_profile())
    expected = srgb_curve(RAMP / 255) * 255
    assert np.abs(shown[0] - expected[:, None]).max() <= 1.5


def test_a_profile_with_exchanged_primaries_exchanges_the_colours():
    curve = rgb_profile(red=GREEN, green=BLUE, blue=RED, power=2.2)
    shown = read(Image.new("RGB", (4, 4), (255, 0, 0)), icc_profile=curve)
    assert np.abs(shown[0, 0] - (0, 255, 0)).max() <= 3


def test_transparency_survives_the_conversion():
    image = Image.new("RGBA", (2, 1), (64, 64, 64, 255))
    image.putpixel((1, 0), (64, 64, 64, 0))
    shown = read(image, icc_profile=rgb_profile())
    assert np.abs(shown[0, 0] - 255 * srgb_curve(np.array(64 / 255))).max() <= 1.5
    assert shown[0, 1].tolist() == [255, 255, 255]


def test_a_grey_profile_is_used():
    shown = read(Image.fromarray(RAMP[None]), icc_profile=icc(b"GRAY", {b"kTRC": gamma(1.8)}))
    assert np.abs(shown[0] - 255 * srgb_curve((RAMP / 255) ** 1.8)[:, None]).max() <= 1.5


def test_a_grey_image_with_a_profile_for_rgb_is_read_as_rgb():
    shown = read(Image.fromarray(RAMP[None]), icc_profile=rgb_profile())
    assert np.abs(shown[0] - 255 * srgb_curve(RAMP / 255)[:, None]).max() <= 1.5


def test_srgb_itself_changes_nothing():
    noise = grey_noise((32, 32), 90).convert("RGB")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(read(noise, icc_profile=profile), np.asarray(noise))


@pytest.mark.parametrize("profile", [b"no profile at all", icc(b"GRAY", {b"kTRC": gamma(1.0)}), bytes(200)])
def test_a_profile_that_does_not_fit_is_ignored_with_a_note(profile):
    stored = io.BytesIO()
    Image.new("RGB", (4, 4), (9, 99, 199)).save(stored, "PNG", icc_profile=profile)
    image = decode(stored.getvalue())
    assert image.image.getpixel((1, 1)) == (9, 99, 199) and image.note == UNFIT_PROFILE


def cmyk_profile() -> bytes:
    """Every ink gives the same mid grey unless black is full: far from what the naive formula says."""
    curves = bytes(range(256))
    grid = b"".join(bytes((0 if black else 128, 128, 128)) for _ in range(8) for black in (0, 1))
    lut = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0))
    lut += b"".join(struct.pack(">i", 65536 * one) for one in (1, 0, 0, 0, 1, 0, 0, 0, 1))
    return icc(b"CMYK", {b"A2B0": lut + curves * 4 + grid + curves * 3}, kind=b"prtr", pcs=b"Lab ")


def test_the_profile_of_a_cmyk_image_is_used():
    image = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
    shown = read(image, "TIFF", icc_profile=cmyk_profile())
    red, green, blue = shown[9, 9]
    assert max(red, green, blue) - min(red, green, blue) <= 3
    assert abs(red - 119) <= 4  # L* = 50.2 is 18.6 % of the light, which sRGB stores as 119


def png(width: int, depth: int, colour_type: int, row: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG of one row (ISO 15948)."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, 1, depth, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def test_sixteen_bit_colour_keeps_its_high_bits():
    values = np.array([[0, 32896, 65535], [65535, 257 * 40, 0]], dtype=">u2")
    shown = np.asarray(decode(png(2, 16, 2, values.tobytes())).image)
    assert np.abs(shown[0].astype(int) - values.astype(int) // 257).max() <= 1


def test_sixteen_bit_grey_may_declare_one_value_clear():
    row = struct.pack(">HHH", 0, 1000, 65535)
    image = decode(png(3, 16, 0, row, (b"tRNS", struct.pack(">H", 1000))), background="#ff0000")
    shown = [image.image.getpixel((x, 0)) for x in range(3)]
    assert shown == [(0, 0, 0), (255, 0, 0), (255, 255, 255)]


def test_sixteen_bit_grey_of_either_byte_order_is_scaled():
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    little = Image.fromarray(values)
    big = Image.frombytes("I;16B", (4, 1), values.astype(">u2").tobytes())
    for image in (little, big):
        assert read(image, "TIFF")[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    "image",
    [Image.new("F", (8, 8), 0.5), Image.new("I", (8, 8), 2**20), Image.new("LAB", (8, 8))],
    ids=lambda image: image.mode,
)
def test_pixels_that_cannot_be_shown_truthfully_are_refused(image):
    stored = io.BytesIO()
    image.save(stored, "TIFF")
    with pytest.raises(DatasetError, match="not supported; save it with 8"):
        decode(stored.getvalue())


def test_a_palette_with_and_without_a_clear_colour_and_bits_become_rgb():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert read(palette)[0].tolist() == [[10, 20, 30], [40, 50, 60]]
    assert read(palette, transparency=0)[0].tolist() == [[255, 255, 255], [40, 50, 60]]
    assert read(palette, transparency=bytes([255, 0]))[0].tolist() == [[10, 20, 30], [255, 255, 255]]
    bits = Image.new("1", (2, 1))
    bits.putpixel((0, 0), 1)
    assert read(bits)[0].tolist() == [[255, 255, 255], [0, 0, 0]]


@pytest.mark.parametrize("background", ["white", "black", "grey", "#102030"])
def test_clear_parts_get_the_chosen_background_and_half_clear_ones_are_mixed(background):
    image = Image.new("RGBA", (3, 1), (200, 100, 0, 255))
    image.putpixel((1, 0), (200, 100, 0, 128))
    image.putpixel((2, 0), (200, 100, 0, 0))
    stored = io.BytesIO()
    image.save(stored, "PNG")
    decoded = decode(stored.getvalue(), background=background)
    colours = {"white": (255,) * 3, "black": (0,) * 3, "grey": (128,) * 3, "#102030": (16, 32, 48)}
    under, over = np.array(colours[background]), np.array((200, 100, 0))
    expected = [over, over * 128 / 255 + under * 127 / 255, under]
    shown = np.asarray(decoded.image)[0]
    assert np.abs(shown - np.array(expected)).max() <= 1
    assert np.asarray(decoded.opacity)[0].tolist() == [255, 128, 0]


def test_clear_grey_gets_the_background_too():
    stored = io.BytesIO()
    Image.new("LA", (2, 2), (7, 0)).save(stored, "PNG")
    assert decode(stored.getvalue(), background="#00ff00").image.getpixel((0, 0)) == (0, 255, 0)
    stored = io.BytesIO()
    Image.new("L", (2, 2), 7).save(stored, "PNG", transparency=7)
    assert decode(stored.getvalue(), background="#00ff00").image.getpixel((0, 0)) == (0, 255, 0)

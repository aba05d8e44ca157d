"""Image files with things wrong in them that a format's own structure allows, from a seed.

Each format is taken apart as its standard does (chunks, segments, blocks, entries, boxes), a few parts or
numbers are changed, and checksums are put right again, so that a decoder gets further than to the first one.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import pillow_heif
from noise import grey_noise
from PIL import Image

FORMATS = ("png", "jpg", "webp", "gif", "bmp", "tiff", "avif", "heic")
NUMBERS = (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 63, 64, 127, 128, 200, 255, 256, 257, 4096, 32767, 32768, 65535)
LARGE = (*NUMBERS, 65536, 100_000, 2**24, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)


class Field(NamedTuple):
    """A number in a file."""

    at: int
    size: int  # bytes
    order: str  # "<" or ">"


class Part(NamedTuple):
    """A piece that stands by itself."""

    start: int
    end: int


Parts, Fields = list[Part], list[Field]
Anatomy = tuple[Parts, Fields]


def whole_files() -> dict[str, list[bytes]]:
    """By format, of the kinds of pixels that its decoder knows."""
    noise = grey_noise((60, 48), 70)
    colour = Image.merge("RGB", (noise, noise.rotate(90), noise.rotate(180)))
    clear = colour.copy()
    clear.putalpha(noise)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    profile = {"icc_profile": Image.new("RGB", (1, 1)).info.get("icc_profile") or _profile()}
    moving = {"save_all": True, "append_images": [colour.rotate(30), colour.rotate(60)]}
    wanted = {
        "png": [
            *((colour, {"exif": exif, **profile}), (clear, moving), (noise.convert("I;16"), {})),
            *((colour.quantize(16), {"transparency": 3}), (noise.convert("1"), {}), (noise, {})),
        ],
        "jpg": [
            *((colour, {"exif": exif, **profile}), (colour, {"progressive": True, "quality": 60})),
            *(
                (colour.convert("CMYK"), {}),
                (noise, {}),
                (colour, {"subsampling": 2, "restart_marker_rows": 1}),
            ),
        ],
        "webp": [
            *((colour, {"exif": exif, **profile}), (clear, {"lossless": True}), (clear, moving)),
            (clear, {"quality": 30}),
        ],
        "gif": [(colour, moving), (colour.quantize(8), {"transparency": 2}), (noise, {"interlace": 1})],
        "bmp": [(colour, {}), (noise, {}), (clear, {}), (noise.convert("1"), {}), (colour.quantize(16), {})],
        "tiff": [
            *((colour, {"exif": exif, **profile}), (colour, {"compression": "tiff_lzw"}), (noise, moving)),
            *((colour, {"compression": "jpeg"}), (clear, {"compression": "tiff_adobe_deflate"})),
            *((noise.convert("1"), {"compression": "group4"}), (noise.convert("I;16"), {})),
        ],
        "avif": [(colour, {"exif": exif}), (clear, {}), (colour, moving)],
        "heic": [(colour, {"exif": exif.tobytes()}), (clear, {}), (noise, {})],
    }
    return {
        ending: [_stored(image, ending, options) for image, options in some]
        for ending, some in wanted.items()
    }


def _profile() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _stored(image: Image.Image, ending: str, options: dict[str, object]) -> bytes:
    written = io.BytesIO()
    if ending == "heic":
        pillow_heif.from_pillow(image).save(written, quality=60, **options)
    else:
        image.save(written, "JPEG" if ending == "jpg" else ending.upper(), **options)
    return written.getvalue()


def mutated(files: dict[str, list[bytes]], ending: str, draw: random.Random) -> bytes:
    """A file of a format with one to three things wrong, and the checksums of what it then holds."""
    data = draw.choice(files[ending])
    for _ in range(draw.choice((1, 1, 2, 3))):
        parts, fields = ANATOMIES[ending](data)
        change = draw.choice((_number, _number, _number, _remove, _repeat, _exchange, _bytes, _cut, _borrow))
        data = change(data, parts, fields, draw, draw.choice(files[ending])) or data
    return _with_checksums(data) if ending == "png" and draw.random() < 0.9 else data


def _number(data: bytes, parts: Parts, fields: Fields, draw: random.Random, other: bytes) -> bytes:
    """One to four numbers take values at the edges of what fits."""
    changed = bytearray(data)
    for field in draw.sample(fields, min(len(fields), draw.choice((1, 1, 2, 4)))):
        old = int.from_bytes(data[field.at : field.at + field.size], _ORDERS[field.order])
        near = (old - 1, old + 1, old * 2, old // 2, old ^ (1 << draw.randrange(8 * field.size)))
        value = draw.choice((*near, draw.choice(LARGE))) % (1 << 8 * field.size)
        changed[field.at : field.at + field.size] = value.to_bytes(field.size, _ORDERS[field.order])
    return bytes(changed)


_ORDERS = {"<": "little", ">": "big"}


def _remove(data: bytes, parts: Parts, fields: Fields, draw: random.Random, other: bytes) -> bytes:
    one = draw.choice(parts)
    return data[: one.start] + data[one.end :]


def _repeat(data: bytes, parts: Parts, fields: Fields, draw: random.Random, other: bytes) -> bytes:
    """A part stands there again, or thousands of times if it is small."""
    one, place = draw.choice(parts), draw.choice(parts)
    piece = data[one.start : one.end]
    times = draw.choice((1, 2, 100, 5000)) if len(piece) < 100 else draw.choice((1, 2))
    return data[: place.start] + piece * times + data[place.start :]


def _exchange(data: bytes, parts: Parts, fields: Fields, draw: random.Random, other: bytes) -> bytes:
    first, second = sorted((draw.choice(parts), draw.choice(parts)))
    if first.end > second.start:
        return b""
    pieces = (data[: first.start], data[second.start : second.end], data[first.end : second.start])
    return b"".join((*pieces, data[first.start : first.end], data[second.end :]))


def _bytes(data: bytes, parts: Parts, fields: Fields, draw: random.Random, other: bytes) -> bytes:
    """Bytes inside of a part: other ones, more or fewer."""
    one = draw.choice(parts)
    if one.end - one.start < 2:
        return b""
    at = draw.randrange(one.start, one.end)
    reach = draw.randint(1, min(16, one.end - at))
    noise = draw.randbytes(draw.choice((0, reach, reach, 40)))
    return data[:at] + noise + data[at + reach :]


def _cut(data: bytes, parts: Parts, fields: Fields, draw: random.Random, other: bytes) -> bytes:
    """It ends at the edge of a part, or inside of one."""
    one = draw.choice(parts)
    return data[: draw.choice((one.start, one.end, draw.randint(one.start, one.end)))]


def _borrow(data: bytes, parts: Parts, fields: Fields, draw: random.Random, other: bytes) -> bytes:
    """A part of another file of the format takes a place here."""
    theirs = ANATOMIES[_format_of(other)](other)[0]
    one, place = draw.choice(theirs), draw.choice(parts)
    return data[: place.start] + other[one.start : one.end] + data[draw.choice((place.start, place.end)) :]


def _format_of(data: bytes) -> str:
    beginnings = {b"\x89PNG": "png", b"\xff\xd8": "jpg", b"RIFF": "webp", b"GIF8": "gif", b"BM": "bmp"}
    beginnings |= {b"II*\0": "tiff", b"MM\0*": "tiff"}
    return next((name for start, name in beginnings.items() if data.startswith(start)), "avif")


def _png(data: bytes) -> Anatomy:
    parts, fields, at = [], [], 8
    while at + 12 <= len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        end = min(at + 12 + size, len(data))
        parts.append(Part(at, end))
        fields.append(Field(at, 4, ">"))
        if data[at + 4 : at + 8] == b"IHDR":
            fields += [
                Field(at + 8, 4, ">"),
                Field(at + 12, 4, ">"),
                *(Field(at + 16 + n, 1, ">") for n in range(5)),
            ]
        elif data[at + 4 : at + 8] != b"IDAT":
            fields += [Field(one, 4, ">") for one in range(at + 8, min(end - 8, at + 40), 4)]
            fields += [Field(one, 1, ">") for one in range(at + 8, min(end - 4, at + 20))]
        at = end
    return parts or [Part(0, len(data))], fields or [Field(0, 1, ">")]


def _with_checksums(data: bytes) -> bytes:
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        (size,) = struct.unpack(">I", out[at : at + 4])
        if at + 12 + size > len(out):
            break
        out[at + 8 + size : at + 12 + size] = struct.pack(">I", zlib.crc32(out[at + 4 : at + 8 + size]))
        at += 12 + size
    return bytes(out)


def _jpg(data: bytes) -> Anatomy:
    parts, fields, at = [], [], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in (0xD8, 0xD9, 0x01, *range(0xD0, 0xD8), 0xFF):
            at += 2
            continue
        end = min(at + 2 + struct.unpack(">H", data[at + 2 : at + 4])[0], len(data))
        if end <= at + 3:
            break
        parts.append(Part(at, end))
        fields += [Field(at + 1, 1, ">"), Field(at + 2, 2, ">")]
        fields += [Field(one, 1, ">") for one in range(at + 4, min(end, at + 30))]
        if 0xC0 <= marker <= 0xCF and end >= at + 9:
            fields += [Field(at + 5, 2, ">"), Field(at + 7, 2, ">")] * 3
        if marker == 0xE1:  # EXIF data are a TIFF file
            fields += [Field(one, 2, "<") for one in range(at + 10, min(end - 2, at + 80), 2)]
        at = end
        if marker == 0xDA:
            following = data.find(b"\xff", at)
            while following >= 0 and data[following + 1 : following + 2] in (b"\0", *_RESTARTS):
                following = data.find(b"\xff", following + 2)
            end = len(data) if following < 0 else following
            parts.append(Part(at, end))
            at = end
    return parts or [Part(0, len(data))], fields or [Field(0, 1, ">")]


_RESTARTS = tuple(bytes([number]) for number in range(0xD0, 0xD8))


def _webp(data: bytes) -> Anatomy:
    parts, fields, waiting = [], [Field(4, 4, "<")], [(12, len(data))]
    while waiting:
        at, limit = waiting.pop()
        while at + 8 <= limit:
            size = struct.unpack("<I", data[at + 4 : at + 8])[0]
            end = min(at + 8 + size + size % 2, limit)
            parts.append(Part(at, end))
            fields += [Field(at + 4, 4, "<")]
            fields += [Field(one, 3, "<") for one in range(at + 8, min(end - 3, at + 26), 3)]
            fields += [Field(one, 1, "<") for one in range(at + 8, min(end, at + 20))]
            if data[at : at + 4] == b"ANMF":
                waiting.append((at + 24, end))
            at = end
    return parts or [Part(0, len(data))], fields


def _gif(data: bytes) -> Anatomy:
    fields = [Field(6, 2, "<"), Field(8, 2, "<"), *(Field(one, 1, "<") for one in (10, 11, 12))]
    at = 13 + (3 * 2 ** ((data[10] & 7) + 1) if len(data) > 10 and data[10] & 0x80 else 0)
    parts = [Part(13, min(at, len(data)))] if at > 13 else []
    while at + 2 < len(data) and data[at] in (0x21, 0x2C):
        start = at
        if data[at] == 0x2C:
            fields += [Field(at + 1 + 2 * n, 2, "<") for n in range(4)] + [Field(at + 9, 1, "<")]
            packed = data[at + 9] if at + 9 < len(data) else 0
            at += 10 + (3 * 2 ** ((packed & 7) + 1) if packed & 0x80 else 0)
            fields += [Field(at, 1, "<")] * 3  # the least code size
            at += 1
        else:
            fields += [Field(at + 1 + n, 1, "<") for n in range(7)]
            at += 2
        while at < len(data) and data[at]:
            fields.append(Field(at, 1, "<"))
            at += 1 + data[at]
        at += 1
        parts.append(Part(start, min(at, len(data))))
    inside = [one for one in fields if one.at + one.size <= len(data)]
    return parts or [Part(0, len(data))], inside or [Field(0, 1, "<")]


def _bmp(data: bytes) -> Anatomy:
    fields = [Field(at, 4, "<") for at in (2, 10, 14, 18, 22, 30, 34, 38, 46, 50, 54, 58, 62, 66)]
    fields += [Field(26, 2, "<"), Field(28, 2, "<"), Field(30, 1, "<")]
    inside = [one for one in fields if one.at + one.size <= len(data)]
    edges = [0, 14, 54, min(118, len(data)), len(data)]
    parts = [Part(*one) for one in pairwise(edges) if one[0] < one[1] <= len(data)]
    return parts or [Part(0, len(data))], inside or [Field(0, 1, "<")]


def _tiff(data: bytes) -> Anatomy:
    order = "<" if data[:2] == b"II" else ">"
    parts, fields, seen = [Part(0, min(8, len(data)))], [Field(4, 4, order)], set[int]()
    at = struct.unpack(f"{order}I", data[4:8])[0] if len(data) >= 8 else 0
    while 0 < at + 2 <= len(data) and at not in seen and len(seen) < 50:
        seen.add(at)
        count = min(struct.unpack(f"{order}H", data[at : at + 2])[0], (len(data) - at - 2) // 12)
        fields.append(Field(at, 2, order))
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            parts.append(Part(entry, entry + 12))
            fields += [Field(entry, 2, order), Field(entry + 2, 2, order)]
            fields += [Field(entry + 4, 4, order), Field(entry + 8, 4, order), Field(entry + 8, 2, order)]
        end = at + 2 + 12 * count
        if end + 4 > len(data):
            break
        fields.append(Field(end, 4, order))
        at = struct.unpack(f"{order}I", data[end : end + 4])[0]
    inside = [one for one in fields if one.at + one.size <= len(data)]
    return parts, inside or [Field(0, 1, order)]


_WITH_BOXES = {b"meta": 4, b"iprp": 0, b"ipco": 0, b"moov": 0, b"trak": 0, b"mdia": 0, b"minf": 0, b"stbl": 0}
_WITH_BOXES |= {b"iinf": 6, b"iref": 4}


def _boxes(data: bytes) -> Anatomy:
    parts, fields, waiting = [], [], [(0, len(data))]
    while waiting:
        at, limit = waiting.pop()
        while at + 8 <= limit:
            size, kind = struct.unpack(">I4s", data[at : at + 8])
            end = min(at + size if size >= 8 else limit, limit)
            parts.append(Part(at, end))
            fields.append(Field(at, 4, ">"))
            if kind in _WITH_BOXES:
                waiting.append((at + 8 + _WITH_BOXES[kind], end))
            elif kind != b"mdat":
                fields += [Field(one, 4, ">") for one in range(at + 8, min(end - 3, at + 40), 4)]
                fields += [Field(one, 2, ">") for one in range(at + 8, min(end - 1, at + 40), 2)]
                fields += [Field(one, 1, ">") for one in range(at + 8, min(end, at + 30))]
            at = end
    return parts or [Part(0, len(data))], fields or [Field(0, 1, ">")]


ANATOMIES: dict[str, Callable[[bytes], Anatomy]] = {
    **{"png": _png, "jpg": _jpg, "webp": _webp, "gif": _gif, "bmp": _bmp, "tiff": _tiff},
    **{"avif": _boxes, "heic": _boxes},
}


def several(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Names and contents, format by format in turn."""
    files = whole_files()
    for number in range(count):
        ending = FORMATS[number % len(FORMATS)]
        draw = random.Random(seed * 1_000_003 + number)
        yield f"{number:05}.{ending}", mutated(files, ending, draw)

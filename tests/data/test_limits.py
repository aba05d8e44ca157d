"""Images that would fill the memory are refused before they are decoded, or decoded smaller."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pillow_heif
import pytest
import torch
from data_config import data_config
from memory import PEAK_BYTES, needs_proc
from PIL import Image

from lora_studio.data.buckets import assign
from lora_studio.data.cache.encode import pixels_of
from lora_studio.data.doctor import examine_folder
from lora_studio.data.images.decode import MAX_PIXELS, load_image
from lora_studio.data.scan import scan
from lora_studio.errors import DatasetError

SIDE = 20_000
MAX_SECONDS = 1.0
MAX_MORE_BYTES = 100_000_000
# The scan of a folder with one small image comes first: what it takes is not the large one's doing.
SCAN = f"""{PEAK_BYTES}
import json, sys, time
from pathlib import Path
from lora_studio.data.scan import scan
scan(Path(sys.argv[1]))
before = peak_bytes()
began = time.process_time()
(record,) = [one for one in scan(Path(sys.argv[2])).records if one.name.startswith("bomb")]
seconds = time.process_time() - began
said = record.excluded or "%dx%d %s" % (record.width, record.height, record.note)
print(json.dumps([said, seconds, peak_bytes() - before]))
"""


def write_black_png(path: Path, side: int) -> None:
    """A whole PNG of `side` x `side` black pixels, one bit each, for which Pillow takes a byte each."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer, row = zlib.compressobj(1), bytes(1 + -(-side // 8))
    body = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", body) + chunk(b"IEND", b""))


def scanned(folder: Path, large: Path) -> tuple[str, float, int]:
    command = [sys.executable, "-c", SCAN, str(folder), str(large)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return tuple(json.loads(result.stdout))


@needs_proc
def test_an_image_of_400_megapixels_is_refused_within_a_second_and_100_megabytes(folder, paint, tmp_path):
    paint("small.png")
    large = tmp_path / "large"
    large.mkdir()
    write_black_png(large / "bomb.png", SIDE)
    paint("other.png", colour="blue").rename(large / "other.png")
    reason, seconds, grown_bytes = scanned(folder, large)
    assert reason == "more than 89 megapixels"
    assert seconds < MAX_SECONDS and grown_bytes < MAX_MORE_BYTES


@pytest.fixture
def photograph_of_108_megapixels(folder: Path) -> Path:
    """Plain but for a square, and grey, so that it is made quickly."""
    image = Image.new("L", (12_000, 9_000), 90)
    image.paste(200, (3_000, 3_000, 9_000, 6_000))
    image.save(
        folder / "bomb.jpg",
        quality=90,
        exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0",
    )
    return folder / "bomb.jpg"


@needs_proc
def test_a_jpeg_of_108_megapixels_is_read_at_half_its_sides_in_a_part_of_the_memory(
    photograph_of_108_megapixels: Path, tmp_path: Path
) -> None:
    (tmp_path / "small").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "small" / "a.png")
    said, seconds, grown_bytes = scanned(tmp_path / "small", photograph_of_108_megapixels.parent)
    note = "108 megapixels, so it is decoded at 1/2 of its width and height"
    assert said == f"9000x12000 {note}"  # upright, in the pixels of the file
    # 27 megapixels: 27 MB in grey, as much turned upright, and 108 as RGB; all pixels would be 432 as RGB.
    assert seconds < 3 and grown_bytes < 250_000_000


def test_what_training_gets_of_it_is_what_shrinking_all_of_it_gives(
    photograph_of_108_megapixels: Path,
) -> None:
    (record,) = assign(scan(photograph_of_108_megapixels.parent), data_config(resolution=64), stride=8).used
    pixels = pixels_of(record)
    light = (pixels[0] > -0.05).nonzero().float()
    height, width = pixels.shape[1:]
    edges = [
        light.amin(0) / torch.tensor([height, width]),
        (light.amax(0) + 1) / torch.tensor([height, width]),
    ]
    assert torch.cat(edges).tolist() == pytest.approx([1 / 4, 1 / 3, 3 / 4, 2 / 3], abs=0.03)


@pytest.mark.parametrize(("name", "reason"), [("a.png", "more than 89"), ("a.jpg", "more than 250")])
def test_what_is_too_large_even_so_is_told_to_be_made_smaller(
    name: str, reason: str, folder: Path, paint: Callable[..., Path]
) -> None:
    paint("other.png", 200, 200)
    if name == "a.png":
        write_black_png(folder / name, 9_600)
    else:
        data = bytearray(paint(name, 64, 64).read_bytes())
        start = data.index(b"\xff\xc0") + 5  # height and width in the frame's header
        data[start : start + 4] = struct.pack(">HH", 20_000, 20_000)
        (folder / name).write_bytes(data)
    report, _ = examine_folder(folder)
    (finding,) = [one for one in report.findings if one.kind == "unusable"]
    assert finding.detail == f"{reason} megapixels" and finding.advice.startswith("Make it smaller")
    with pytest.raises(DatasetError, match="make it smaller, such as 8192 pixels"):
        load_image(folder / name)


DECODE = f"""{PEAK_BYTES}
import sys
from pathlib import Path
from lora_studio.data.images.decode import decode
data = Path(sys.argv[1]).read_bytes()
decode(Path(sys.argv[2]).read_bytes())
before = peak_bytes()
size = decode(data).size
print((peak_bytes() - before) / (size[0] * size[1]))
"""
_DEAREST = {"WEBP": 1e9 / 56e6, "AVIF": 1e9 / 80e6}  # bytes a pixel, so that the most pixels are a gigabyte


@needs_proc
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "AVIF", "HEIC", "GIF"])
def test_the_most_pixels_that_are_decoded_take_a_gigabyte(kind: str, tmp_path: Path) -> None:
    """Bytes a pixel, of one with clear parts, which takes the most."""
    image = Image.new("RGBA", (3000, 2000), (200, 30, 30, 100))
    for name, some in (("large", image), ("small", image.resize((300, 200)))):
        if kind == "HEIC":
            pillow_heif.from_pillow(some).save(tmp_path / name, quality=30)
        else:
            some.save(tmp_path / name, kind, **({"speed": 10} if kind == "AVIF" else {}))
    command = [sys.executable, "-c", DECODE, tmp_path / "large", tmp_path / "small"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert 2 < float(result.stdout) < _DEAREST.get(kind, 1e9 / MAX_PIXELS)

"""Five hundred damaged image files: each is used or left out with a reason, and none takes the memory."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
from pathlib import Path

from memory import PEAK_BYTES, needs_proc
from noise import grey_noise
from PIL import Image

NUM_FILES = 500
MAX_PEAK_BYTES = 1_000_000_000
# A process of its own: a decoder that crashes cannot take the test with it, and the peak is the scan's alone.
SCAN = f"""{PEAK_BYTES}
import json, sys
from pathlib import Path
from lora_studio.data.scan import scan
records = [(r.name, r.width, r.height, r.excluded) for r in scan(Path(sys.argv[1])).records]
print(json.dumps([records, peak_bytes()]))
"""


def whole_files() -> list[bytes]:
    """Images of every format and of the kinds of pixels that its decoder knows."""
    noise = grey_noise((60, 48), 70)
    colour = Image.merge("RGB", (noise, noise.rotate(90), noise.rotate(180)))
    clear = colour.copy()
    clear.putalpha(noise)
    exif = Image.Exif()
    exif[0x0112] = 6
    moving = {"save_all": True, "append_images": [colour.rotate(30), colour.rotate(60)]}
    wanted = [
        (colour, "JPEG", {"exif": exif}),
        (colour, "JPEG", {"progressive": True, "quality": 60}),
        (colour.convert("CMYK"), "JPEG", {}),
        (colour, "PNG", {}),
        (clear, "PNG", {}),
        (noise.convert("I;16"), "PNG", {}),
        (colour.quantize(16), "PNG", {"transparency": 3}),
        (colour, "WEBP", {}),
        (clear, "WEBP", {"lossless": True}),
        (colour, "WEBP", moving),
        (colour, "BMP", {}),
        (colour, "TIFF", {}),
        (colour, "TIFF", {"compression": "tiff_lzw"}),
        (colour, "TIFF", {"compression": "jpeg"}),
        (clear, "TIFF", {"compression": "tiff_adobe_deflate"}),
        (colour, "GIF", moving),
        (colour, "AVIF", {}),
    ]
    files = []
    for image, kind, options in wanted:
        stored = io.BytesIO()
        image.save(stored, kind, **options)
        files.append(stored.getvalue())
    return files


def truncated(data: bytes, files: list[bytes], rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flipped(data: bytes, files: list[bytes], rng: random.Random) -> bytes:
    """Some bits turned over, half of the time only near the beginning, where sizes and offsets stand."""
    damaged = bytearray(data)
    reach = len(data) if rng.random() < 0.5 else min(len(data), 80)
    for _ in range(rng.choice([1, 1, 3, 20])):
        damaged[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def header_swapped(data: bytes, files: list[bytes], rng: random.Random) -> bytes:
    length = rng.choice([4, 12, 32, 64])
    return rng.choice(files)[:length] + data[length:]


@needs_proc
def test_each_of_500_damaged_files_is_used_or_left_out_with_a_reason_within_a_gigabyte(folder: Path) -> None:
    rng, files = random.Random(500), whole_files()
    for number in range(NUM_FILES):
        mutate = (truncated, flipped, header_swapped)[number % 3]
        name = f"{mutate.__name__}_{number:03}.{rng.choice(['jpg', 'png', 'webp', 'tiff', 'avif'])}"
        (folder / name).write_bytes(mutate(rng.choice(files), files, rng))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCAN, str(folder)], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    records, peak_bytes = json.loads(result.stdout)
    assert sorted(name for name, *_ in records) == sorted(before) and len(records) == NUM_FILES
    for name, width, height, excluded in records:
        assert excluded or min(width, height) >= 16, name
        assert "\n" not in excluded and len(excluded) < 300, (name, excluded)
    left_out = sum(bool(excluded) for *_, excluded in records)
    assert 100 < left_out < 450  # the mutator neither spares nor destroys everything
    assert peak_bytes < MAX_PEAK_BYTES
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

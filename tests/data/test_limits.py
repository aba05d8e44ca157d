"""Images that would fill the memory are refused before they are decoded."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

from memory import PEAK_BYTES, needs_proc

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
(record,) = scan(Path(sys.argv[2])).excluded
seconds = time.process_time() - began
print(json.dumps([record.excluded, seconds, peak_bytes() - before]))
"""


def write_black_png(path: Path, side: int) -> None:
    """A whole PNG of `side` x `side` black pixels, one bit each, for which Pillow takes a byte each."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer, row = zlib.compressobj(1), bytes(1 + -(-side // 8))
    body = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", body) + chunk(b"IEND", b""))


@needs_proc
def test_an_image_of_400_megapixels_is_refused_within_a_second_and_100_megabytes(folder, paint, tmp_path):
    paint("small.png")
    large = tmp_path / "large"
    large.mkdir()
    write_black_png(large / "bomb.png", SIDE)
    paint("other.png", colour="blue").rename(large / "other.png")
    command = [sys.executable, "-c", SCAN, str(folder), str(large)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    reason, seconds, grown_bytes = json.loads(result.stdout)
    assert reason == "more than 89 megapixels"
    assert seconds < MAX_SECONDS and grown_bytes < MAX_MORE_BYTES

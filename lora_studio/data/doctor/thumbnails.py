"""Small pictures inside a page: no file beside it is needed."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

from PIL import Image

from lora_studio.data.files import UnreadableFile, read_bytes
from lora_studio.data.manifest import Record
from lora_studio.data.pictures import decode

_LARGEST_SIDE = 256  # pixels: more than the page shows, for fine screens


def data_uri(record: Record) -> str:
    """The picture as "data:image/jpeg;base64,...", without its metadata; "" if it cannot be shown."""
    try:
        picture = decode(read_bytes(Path(record.path)), background=record.background or "white").image
    except UnreadableFile:
        return ""
    picture.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.LANCZOS)
    written = BytesIO()
    # Rebuilt from pixels alone, since a picture also carries where and by whom it was taken.
    Image.frombytes("RGB", picture.size, picture.tobytes()).save(written, "JPEG", quality=72)
    return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode('ascii')}"

"""What a safetensors file says of itself, and the hashes of its tensors, read without loading any of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_studio.errors import StudioError, reason_of

MAX_HEADER = 10_000_000  # bytes; real ones have less than 0.5 MB, and JSON takes ten times as much when read
_PIECE = 1 << 20
_LEGACY = (0x100000, 0x110000)


@dataclass(frozen=True)
class Said:
    """A file's header."""

    path: Path
    tensors: dict[str, Any]  # name -> dtype, shape and place
    metadata: dict[str, str]
    start: int  # bytes before the first tensor

    def block(self) -> Iterator[bytes]:
        """All after the header, in pieces."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            while piece := file.read(_PIECE):
                yield piece


def read_said(path: Path) -> Said:
    """The header of a file. Raises StudioError if there is none, or it is no safetensors file."""
    if not path.is_file():
        raise StudioError(f"there is no file at {path}; give the path of a .safetensors file.")
    try:
        with path.open("rb") as file:
            length, size = int.from_bytes(file.read(8), "little"), path.stat().st_size
            if not 2 <= length <= min(size - 8, MAX_HEADER):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", {})
            if not all(isinstance(value, str) for value in metadata.values()):
                raise ValueError("metadata that is not text")
            json.dumps(metadata, ensure_ascii=False).encode()
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise StudioError(
            f"{path} is not a whole safetensors file ({reason_of(error)}); it may be cut short."
        ) from None
    return Said(path, header, metadata, 8 + length)


def hashes_of(block: Iterator[bytes]) -> dict[str, str]:
    """The two hashes by which UIs know a LoRA: of its tensor block, whatever its metadata say.

    The whole one is A1111's and Civitai's (AutoV3 is its first 12); the other one kohya's of 0.6 and before.
    """
    whole, legacy, place = hashlib.sha256(), hashlib.sha256(), 0
    for piece in block:
        whole.update(piece)
        legacy.update(piece[max(0, _LEGACY[0] - place) : max(0, _LEGACY[1] - place)])
        place += len(piece)
    return {"sshs_model_hash": whole.hexdigest(), "sshs_legacy_hash": legacy.hexdigest()[:8]}

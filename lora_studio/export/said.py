"""What a safetensors file says of itself, and the hashes of its tensors, read without loading any of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_studio.errors import StudioError, reason_of

MAX_HEADER = 10_000_000  # bytes; real ones have less than 0.5 MB, and JSON takes ten times as much when read
_PIECE = 1 << 20


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


def tensor_hash(block: Iterable[bytes]) -> str:
    """`sshs_model_hash`: sha256 of all after the header, by which A1111 and Forge know a file.

    Its first 12 digits are Civitai's AutoV3.
    """
    digest = hashlib.sha256()
    for piece in block:
        digest.update(piece)
    return digest.hexdigest()

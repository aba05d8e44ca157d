"""Untrusted files in, bytes out."""

from __future__ import annotations

import stat
from pathlib import Path

from lora_studio.errors import DatasetError

MAX_FILE_BYTES = 200_000_000


class UnreadableFile(DatasetError):
    """The file cannot be used; the message is the reason alone, without the file's name."""


def read_bytes(path: Path, *, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The whole file. Raises UnreadableFile if it is too large, no regular file or not readable."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise UnreadableFile("not a regular file")
        if status.st_size > max_bytes:
            size, limit = status.st_size / 1e6, max_bytes / 1e6
            raise UnreadableFile(f"{size:.0f} MB; at most {limit:.0f} MB are read")
        return path.read_bytes()
    except OSError as error:
        raise UnreadableFile(f"cannot be read: {error.strerror or error}") from None

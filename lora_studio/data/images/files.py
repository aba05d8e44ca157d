"""Untrusted files in, bytes out."""

from __future__ import annotations

import codecs
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


def decode_text(data: bytes) -> str:
    """The text, its lines ending in "\\n".

    Raises UnicodeDecodeError unless it is UTF-8, or UTF-16 with its mark.
    """
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # Windows Notepad's "Unicode"
    text = data.decode("utf-16" if utf16 else "utf-8-sig")
    if "\0" in text:  # UTF-16 without its mark passes for UTF-8 as far as the letters are ASCII
        raise UnicodeDecodeError("utf-8", data, 0, len(data), "holds NUL characters")
    return text.replace("\r\n", "\n").replace("\r", "\n")

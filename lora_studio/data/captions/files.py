"""The caption file of a picture: which one it is, what it says, and how it was saved."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lora_studio.data.files import UnreadableFile, read_bytes
from lora_studio.data.manifest import Record
from lora_studio.data.names import CAPTION_SUFFIXES, caption_files, stem_key
from lora_studio.data.text import decode_text

MAX_CAPTION_BYTES = 1_000_000

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@dataclass(frozen=True)
class CaptionFile:
    """The file that training reads for a picture, or the one that would be written."""

    path: Path
    data: bytes | None = None  # None: there is no such file
    fault: str = ""  # why it cannot be read; such a file is never written over

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines that say something."""
        return () if self.fault or self.data is None else caption_lines(self.data)

    @property
    def text(self) -> str:
        """All of it in one line; empty if there is none."""
        return " ".join(self.lines)


def find_captions(records: Iterable[Record]) -> list[CaptionFile]:
    """For each picture the first caption file that says something, else the one to write."""
    beside: dict[Path, dict[str, list[Path]]] = {}
    found = []
    for record in records:
        folder = Path(record.path).parent
        if folder not in beside:
            beside[folder] = caption_files(folder)
        candidates = [read_caption_file(path) for path in beside[folder].get(stem_key(record.name), [])]
        candidates.append(CaptionFile(Path(record.path).with_suffix(CAPTION_SUFFIXES[0])))
        found.append(next((file for file in candidates if file.fault or file.text), candidates[0]))
    return found


def read_caption_file(path: Path) -> CaptionFile:
    """The file as it is now; what is wrong with it stands in `fault`."""
    if not os.path.lexists(path):
        return CaptionFile(path)
    try:
        data = read_bytes(path, max_bytes=MAX_CAPTION_BYTES)
    except UnreadableFile as reason:
        return CaptionFile(path, fault=str(reason).removeprefix("cannot be read: "))
    try:
        caption_lines(data)
    except UnicodeDecodeError:
        return CaptionFile(path, data, fault="neither UTF-8 nor UTF-16 with its mark")
    return CaptionFile(path, data)


def caption_lines(data: bytes) -> tuple[str, ...]:
    """A caption file's lines that are not empty, without the spaces around them.

    Raises UnicodeDecodeError unless it is UTF-8, or UTF-16 with its mark.
    """
    return tuple(line.strip() for line in decode_text(data).splitlines() if line.strip())


def split_encoding(data: bytes) -> tuple[bytes, str, str]:
    """A file's bytes -> its byte order mark, the name of its encoding, its text with its own line ends."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return mark, encoding, data[len(mark) :].decode(encoding)
    return b"", "utf-8", data.decode("utf-8")

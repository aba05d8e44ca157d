"""Who wrote which caption: one JSON line for each that a captioner wrote, in a file beside the captions."""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from lora_studio.errors import CaptionError

LEDGER = ".lora-studio-captions.jsonl"
Setting = str | int | float


@dataclass(frozen=True)
class LedgerEntry:
    """A caption that was written: by whom, how, from which image, and what it was."""

    caption: str  # the file's name
    image: str  # the file's name
    author: str  # the captioner's name in its table
    settings: Mapping[str, Setting]  # what the captioner was told
    wording: Mapping[str, str]  # trigger, prefix and the like
    image_sha256: str
    caption_sha256: str  # of the caption file's bytes; another hash means that somebody edited it since
    written_at: str  # ISO 8601, UTC

    def same_work(self, other: LedgerEntry) -> bool:
        """Whether the same captioner with the same settings looked at the same image."""
        names = ("author", "settings", "wording", "image_sha256")
        return all(getattr(self, name) == getattr(other, name) for name in names)


class Ledger:
    """The entries of one folder. Only added to; a line cut short by a crash is passed over."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEDGER
        self._entries: dict[tuple[str, str], LedgerEntry] = {}
        for line in self._read().splitlines():
            if entry := _parse(line):
                self._entries[_key(entry.caption, entry.caption_sha256)] = entry

    def author(self, path: Path, data: bytes) -> LedgerEntry | None:
        """The entry of the captioner that wrote these bytes into the caption file; None: a person did."""
        return self._entries.get(_key(path.name, sha256(data)))

    def add(self, entry: LedgerEntry) -> None:
        """Append the entry, before its caption is written: a caption without an entry counts as by hand."""
        line = (json.dumps(asdict(entry), ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        try:
            with self.path.open("ab+") as file:
                file.write(_missing_newline(file.tell(), self.path) + line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise CaptionError(
                f"{self.path} cannot be written to ({error.strerror or error}); make the folder writable."
            ) from None
        self._entries[_key(entry.caption, entry.caption_sha256)] = entry

    def _read(self) -> str:
        try:
            return self.path.read_text("utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise CaptionError(
                f"{self.path}, which says who wrote the captions, cannot be read "
                f"({error.strerror or error}); make it readable, or remove it if all captions are yours."
            ) from None


class Ledgers:
    """The ledgers of all folders, each read when it is first asked for."""

    def __init__(self) -> None:
        self._by_folder: dict[Path, Ledger] = {}

    def beside(self, caption: Path) -> Ledger:
        folder = caption.parent
        if folder not in self._by_folder:
            self._by_folder[folder] = Ledger(folder)
        return self._by_folder[folder]

    def author(self, caption: Path, data: bytes | None) -> LedgerEntry | None:
        """The entry of the captioner that wrote these bytes into the file; None: a person did, or no one."""
        return self.beside(caption).author(caption, data) if data else None


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _key(name: str, digest: str) -> tuple[str, str]:
    return unicodedata.normalize("NFC", name), digest  # file systems differ in how they spell "é"


def _missing_newline(size: int, path: Path) -> bytes:
    """What ends a line that a crash has cut short."""
    if not size:
        return b""
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return b"" if file.read(1) == b"\n" else b"\n"


def _parse(line: str) -> LedgerEntry | None:
    """The entry in a line; None for one that is damaged or of another version."""
    try:
        values = {key.replace("picture", "image"): one for key, one in json.loads(line).items()}  # old names
        entry = LedgerEntry(**{field.name: values[field.name] for field in fields(LedgerEntry)})
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    texts = (entry.caption, entry.image, entry.author, entry.image_sha256, entry.caption_sha256)
    whole = all(isinstance(text, str) for text in texts)
    return entry if whole and isinstance(entry.settings, dict) and isinstance(entry.wording, dict) else None

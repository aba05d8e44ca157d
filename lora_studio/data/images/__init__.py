"""Untrusted files: their bytes, and what a name says: image, caption, mask, list of captions or junk."""

from __future__ import annotations

import codecs
import os
import stat
from pathlib import Path

from lora_studio.errors import DatasetError
from lora_studio.text import same_text

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
    """Text of lines ending in "\\n". Raises UnicodeDecodeError unless UTF-8, or UTF-16 with its mark."""
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # Windows Notepad's "Unicode"
    text = data.decode("utf-16" if utf16 else "utf-8-sig")
    if "\0" in text:  # UTF-16 without its mark passes for UTF-8 as far as the letters are ASCII
        raise UnicodeDecodeError("utf-8", data, 0, len(data), "holds NUL characters")
    return text.replace("\r\n", "\n").replace("\r", "\n")


CAPTION_SUFFIXES = (".txt", ".caption")  # the first one wins
MASK_SUFFIX = ".mask.png"
METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jfif", ".jpe", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib"),
        *(".tif", ".tiff", ".gif", ".avif", ".heic", ".heif", ".hif"),
    )
)
_JUNK_NAMES = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_OWN = ".lora-studio-"  # begins the name of whatever this program writes among a user's images


def is_junk(name: str) -> bool:
    """Whether an operating system or tool left it: `.DS_Store`, `._photo.jpg`, `Thumbs.db`, `__MACOSX`."""
    return name.startswith(".") or name.lower() in _JUNK_NAMES


def is_own(name: str) -> bool:
    """Whether it is a record of ours, such as of who wrote the captions; it counts as no file."""
    return name.startswith(_OWN)


def is_caption(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in CAPTION_SUFFIXES


def is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def is_metadata(name: str) -> bool:
    return name.lower() in METADATA_NAMES


def is_mask(name: str) -> bool:
    return name.lower().endswith(MASK_SUFFIX)


def stem_key(name: str) -> str:
    return same_text(os.path.splitext(os.path.basename(name))[0])


def place(name: str) -> tuple[str, str]:
    """What an image, its caption and its mask have in common: their folder, relative, and their stem."""
    folder, _, file = name.rpartition("/")
    stem = file[: -len(MASK_SUFFIX)] if is_mask(file) else os.path.splitext(file)[0]
    return same_text(folder), same_text(stem)


def caption_files(folder: Path | str) -> dict[str, list[Path]]:
    """Stem -> its caption files, the preferred one first."""
    folder = Path(folder)
    try:
        names = sorted(one for one in os.listdir(folder) if is_caption(one) and not is_junk(one))
    except OSError as error:
        raise DatasetError(f"the folder {folder} cannot be read: {error.strerror or error}.") from None
    found: dict[str, list[Path]] = {}
    for name in sorted(names, key=lambda one: CAPTION_SUFFIXES.index(os.path.splitext(one)[1].lower())):
        found.setdefault(stem_key(name), []).append(folder / name)
    return found

"""What a file's name says about it: image, caption, mask, list of captions or junk."""

from __future__ import annotations

import unicodedata
from pathlib import Path, PurePath, PurePosixPath

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


def is_junk(name: str) -> bool:
    """Whether an operating system or tool left it: `.DS_Store`, `._photo.jpg`, `Thumbs.db`, `__MACOSX`."""
    return name.startswith(".") or name.lower() in _JUNK_NAMES


def is_caption(name: str) -> bool:
    """Whether the name is one of a caption file."""
    return PurePath(name).suffix.lower() in CAPTION_SUFFIXES


def is_image(name: str) -> bool:
    """Whether the name ends like one of an image; what is in the file is not looked at."""
    return PurePath(name).suffix.lower() in IMAGE_SUFFIXES


def is_metadata(name: str) -> bool:
    """Whether it is a list of captions as Hugging Face's image folders have it."""
    return name.lower() in METADATA_NAMES


def is_mask(name: str) -> bool:
    """Whether the name is one of a loss mask beside its image: `cat.mask.png` for `cat.jpg`."""
    return name.lower().endswith(MASK_SUFFIX)


def same_name(name: str) -> str:
    """The name as it compares: macOS spells "é" as two code points, other systems as one."""
    return unicodedata.normalize("NFC", name)


def stem_key(name: str) -> str:
    """What an image and its caption file have in common."""
    return same_name(PurePath(name).stem)


def place(name: str) -> tuple[str, str]:
    """What an image, its caption and its mask have in common: their folder, relative, and their stem."""
    path = PurePosixPath(name)
    stem = path.name[: -len(MASK_SUFFIX)] if is_mask(path.name) else path.stem
    return same_name(str(path.parent)), same_name(stem)


def caption_files(folder: Path) -> dict[str, list[Path]]:
    """Stem -> its caption files, the preferred one first."""
    names = sorted(
        entry.name for entry in folder.iterdir() if is_caption(entry.name) and not is_junk(entry.name)
    )
    found: dict[str, list[Path]] = {}
    for suffix in CAPTION_SUFFIXES:
        for name in names:
            if PurePath(name).suffix.lower() == suffix:
                found.setdefault(stem_key(name), []).append(folder / name)
    return found

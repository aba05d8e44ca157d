"""The cache folder: what lies in it, and what of it may go.

Only files with the names that our caches give are seen and removed, whatever else lies there.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lora_studio.errors import DatasetError

THUMBNAILS = "thumbnails"
KINDS = {  # folder -> content
    "latents": "latents",
    "text": "text",
    "class_images": "regularization images",
    "drawn": "images of evaluations",
    THUMBNAILS: "thumbnails of the page",
}
_ENTRY = re.compile(r"([0-9a-f]{64})\.(safetensors|png|json|jpg)")
_LEFTOVER = re.compile(r"([0-9a-f]{64}\.[0-9a-f]{32}|\.lora-studio-[0-9a-f]{32})\.tmp")
_LEFTOVER_AFTER = 3600  # seconds; a younger one may be in the hands of a running process
_SECONDS = {"h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}
_BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class CacheEntry:
    """One latent, caption's conditioning or regularization image; or a file that a crash left behind."""

    kind: str
    files: tuple[Path, ...]
    num_bytes: int
    used_at: float  # seconds since 1970: when it was made or last used, to the day
    leftover: bool = False


def entries(folder: Path) -> list[CacheEntry]:
    return [entry for kind in KINDS for entry in _of_kind(kind, folder / kind)]


def prunable(
    found: Sequence[CacheEntry],
    *,
    older_than: float | None = None,
    max_bytes: int | None = None,
    now: float | None = None,
) -> list[CacheEntry]:
    """What goes: entries not used for `older_than` seconds, then the longest unused until the rest fits.

    What a crash left behind goes in any case, once it is an hour old.
    """
    now = time.time() if now is None else now
    gone = [one for one in found if one.leftover and now - one.used_at > _LEFTOVER_AFTER]
    kept = sorted((one for one in found if not one.leftover), key=lambda one: one.used_at)
    total = sum(one.num_bytes for one in kept)
    for one in kept:
        old = older_than is not None and now - one.used_at > older_than
        if old or (max_bytes is not None and total > max_bytes):
            gone.append(one)
            total -= one.num_bytes
    return gone


def remove(found: Sequence[CacheEntry]) -> int:
    """Remove the entries; the bytes that are free now. What another process removed first is no fault."""
    freed = 0
    for entry in found:
        try:
            for path in entry.files:
                path.unlink(missing_ok=True)
        except OSError as error:
            what = f"{path} cannot be removed ({error.strerror or error})"
            raise DatasetError(f"{what}; free it, or remove it yourself.") from None
        freed += entry.num_bytes
    return freed


def remove_left_overs(folder: Path) -> None:
    """What processes that were killed an hour ago or more had not given its name, as far as the disk lets."""
    for place in (folder, *(folder / kind for kind in KINDS)):
        with suppress(OSError), os.scandir(place) as found:
            for one in found:
                is_ours = _LEFTOVER.fullmatch(one.name) and one.is_file(follow_symlinks=False)
                if is_ours and time.time() - one.stat().st_mtime > _LEFTOVER_AFTER:
                    os.unlink(one)


def seconds_of(text: str) -> int:
    """ "30d", "12h" or "4w" in seconds. Raises DatasetError for anything else."""
    if match := re.fullmatch(r"(\d+)\s*([hdw])", text.strip().lower()):
        return int(match[1]) * _SECONDS[match[2]]
    raise DatasetError(f"{text!r} is no age; give hours, days or weeks such as 12h, 30d or 4w.")


def bytes_of(text: str) -> int:
    """ "5GB", "500 MB" or "1.5TB" in bytes. Raises DatasetError for anything else."""
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B|)", text.strip().upper()):
        return int(float(match[1]) * _BYTES[match[2]])
    raise DatasetError(f"{text!r} is no size; give bytes, KB, MB, GB or TB such as 500MB or 5GB.")


def _of_kind(kind: str, folder: Path) -> Iterator[CacheEntry]:
    files: dict[str, dict[Path, os.stat_result]] = {}
    for path, status in _regular_files(folder):
        if match := _ENTRY.fullmatch(path.name):
            files.setdefault(match[1], {})[path] = status
        elif _LEFTOVER.fullmatch(path.name):
            yield CacheEntry(kind, (path,), status.st_size, status.st_mtime, leftover=True)
    for found in files.values():  # a .json, which vouches for its .png, goes first
        num_bytes, used_at = sum(s.st_size for s in found.values()), max(s.st_mtime for s in found.values())
        yield CacheEntry(kind, tuple(sorted(found)), num_bytes, used_at)


def _regular_files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in folder.iterdir():
        try:
            status = path.lstat()
        except FileNotFoundError:  # another process was faster
            continue
        if stat.S_ISREG(status.st_mode):
            yield path, status

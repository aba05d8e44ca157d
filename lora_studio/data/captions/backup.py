"""What captions were before they were replaced: copies in a dot folder, which scanning passes over."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from lora_studio.errors import CaptionError
from lora_studio.run import write_atomically

BACKUPS = ".lora-studio-backup"


class Backup:
    """A folder of this run's own, made when the first file is kept: `.lora-studio-backup/<time>/`."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.folder: Path | None = None

    def keep(self, path: Path, data: bytes) -> None:
        """Write a copy of the caption file, which holds `data`. Raises CaptionError if the disk refuses."""
        path = path.absolute()
        inside = path.relative_to(self.root) if path.is_relative_to(self.root) else Path(path.name)
        try:
            if self.folder is None:
                self.folder = _new_folder(self.root / BACKUPS)
            write_atomically(self.folder / inside, data)
        except OSError as error:
            raise CaptionError(
                f"no copy of {path} could be kept ({error.strerror or error}), so it was not replaced; "
                "make the folder writable."
            ) from None


def replace_caption(path: Path, data: bytes, *, before: bytes | None, backup: Backup) -> None:
    """Write `data` into a caption file that held `before`, which is kept unless it was nothing.

    Raises CaptionError if the disk refuses; then the file holds what it held.
    """
    if before and before.strip():
        backup.keep(path, before)
    try:
        write_atomically(path, data)
    except OSError as error:
        reason = error.strerror or error
        raise CaptionError(f"{path} cannot be written ({reason}); make the folder writable.") from None


def _new_folder(backups: Path) -> Path:
    """A folder named by the time in UTC; a number follows if two runs share a second."""
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    for number in range(1, 10_000):
        folder = backups / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"{backups} is full")

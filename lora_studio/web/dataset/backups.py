"""Files of the user that the page changes: each is kept first, and a change can be taken back."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from lora_studio.data.captions.find_replace import BACKUPS, Backup
from lora_studio.errors import DatasetError, StudioError
from lora_studio.files import write_atomically
from lora_studio.text import shown

_MOST_UNDOS = 1000


@dataclass(frozen=True)
class FileChange:
    """What one step did to a file; None: there was none, or is none now."""

    path: Path
    before: bytes | None
    after: bytes | None


@dataclass
class SafeWriter:
    """Writes files below `folder`; what was not written by this page is kept in its backup folder first."""

    folder: Path
    steps: list[list[FileChange]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # of the steps
    _written: dict[Path, bytes | None] = field(default_factory=dict)
    _backup: Backup | None = None
    _kept: set[Path] = field(default_factory=set)

    def write(self, path: Path, data: bytes | None, *, expected: bytes | None) -> None:
        """Write the file, or take it away where `data` is None; see `write_all`."""
        self.write_all([FileChange(path, expected, data)])

    def write_all(self, changes: list[FileChange]) -> None:
        """Several files as one step to take back. Raises DatasetError, with what is written until then kept.

        So it does for a file that no longer holds what it did when it was shown.
        """
        done: list[FileChange] = []
        try:
            for one in changes:
                self._write(one)
                done.append(one)
        finally:
            if done:
                self.steps.append(done)
                self.times.append(time.monotonic())
                del self.steps[:-_MOST_UNDOS], self.times[:-_MOST_UNDOS]

    def undo(self) -> list[Path]:
        """Take the last step back: its files. Raises DatasetError if one has changed since."""
        if not self.steps:
            return []
        last = self.steps[-1]
        for one in last:
            self._check(one.path, one.after)
        for one in last:
            self._write(FileChange(one.path, one.after, one.before))
        self.steps.pop()
        self.times.pop()
        return [one.path for one in last]

    def _check(self, path: Path, expected: bytes | None) -> None:
        if current(path) != expected:
            raise DatasetError(
                f"{shown(path.name)} was changed meanwhile and stays as it is; open the images again."
            )

    def _write(self, one: FileChange) -> None:
        self._check(one.path, one.before)
        if one.before and self._written.get(one.path) != one.before:
            self._keep(one.path, one.before)
        try:
            if one.after is None:
                one.path.unlink(missing_ok=True)
            else:
                write_atomically(one.path, one.after)
        except OSError as error:
            reason = error.strerror or error
            raise DatasetError(
                f"{shown(one.path.name)} cannot be written ({reason}); make its folder writable."
            ) from None
        self._written[one.path] = one.after

    def _keep(self, path: Path, data: bytes) -> None:
        if self._backup is None or path in self._kept:  # a second copy would replace the first
            self._backup, self._kept = Backup(self.folder), set()
        try:
            self._backup.keep(path, data)
        except StudioError as error:
            raise DatasetError(str(error)) from None
        self._kept.add(path)

    @property
    def place(self) -> Path:
        """Where the copies are."""
        return self.folder / BACKUPS

    @property
    def last_at(self) -> float:
        """When the last step was, to compare with another writer's; below 0 without one."""
        return self.times[-1] if self.times else -1.0


def current(path: Path) -> bytes | None:
    """What the file holds; None without one. Raises DatasetError if it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DatasetError(f"{shown(path.name)} cannot be read ({error.strerror or error}).") from None

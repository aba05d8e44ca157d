"""A file of measurements that grows while it is read: each look costs what is new in it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

_MOST_BYTES = 32 * 2**20  # of a look; the next one goes on


class FollowedRows:
    """The lines of a metrics.jsonl or the like, in the order of their steps, one for each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.version = 0  # another one whenever `rows` has changed
        self._rows: dict[int, dict[str, Any]] = {}
        self._file: tuple[int, int] = (0, 0)
        self._read = 0  # bytes, up to the end of a line
        self._list: list[dict[str, Any]] = []
        self._listed = 0  # the version that `_list` is of

    @property
    def rows(self) -> list[dict[str, Any]]:
        if self._listed != self.version:
            self._list, self._listed = [*self._rows.values()], self.version
        return self._list

    def look(self) -> bool:
        """Whether there is anything new. A file that was written again, as by a resume, is read anew.

        Damaged lines are passed over; a file that cannot be read has none.
        """
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                identity = (status.st_dev, status.st_ino)
                if identity != self._file or status.st_size < self._read:
                    self._file, self._read, self._rows = identity, 0, {}
                    self.version += 1
                if status.st_size == self._read:
                    return False
                file.seek(self._read)
                content = file.read(_MOST_BYTES)
        except OSError:
            return self._forget()
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.split(b"\n"):
            self._take(line)
        self.version += bool(whole)
        return bool(whole)

    def _forget(self) -> bool:
        had, self._rows, self._read, self._file = bool(self._rows), {}, 0, (0, 0)
        self.version += had
        return had

    def _take(self, line: bytes) -> None:
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            return
        if isinstance(row, dict) and type(row.get("step")) is int and row["step"] >= 0:
            self._rows.setdefault(row["step"], row)

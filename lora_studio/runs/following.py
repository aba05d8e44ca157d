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
        self.rows: list[dict[str, Any]] = []  # another list once it is read anew, else it only grows
        self._steps: set[int] = set()
        self._file: tuple[int, int] = (0, 0)
        self._read = 0  # bytes, up to the end of a line

    def look(self) -> bool:
        """Whether there is anything new. A file that was written again, as by a resume, is read anew.

        Damaged lines are passed over; a file that cannot be read has none.
        """
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                identity = (status.st_dev, status.st_ino)
                if identity != self._file or status.st_size < self._read:
                    self._begin(identity)
                if status.st_size == self._read:
                    return False
                file.seek(self._read)
                content = file.read(_MOST_BYTES)
        except OSError:
            had = bool(self.rows)
            if had or self._read:
                self._begin((0, 0))
            return had
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.split(b"\n"):
            self._take(line)
        self.version += bool(whole)
        return bool(whole)

    def _begin(self, identity: tuple[int, int]) -> None:
        self._file, self._read, self.rows, self._steps = identity, 0, [], set()
        self.version += 1

    def _take(self, line: bytes) -> None:
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            return
        step = row.get("step") if isinstance(row, dict) else None
        if type(step) is int and step >= 0 and step not in self._steps:
            self._steps.add(step)
            self.rows.append(row)

"""The run folder and its only writer: everything is written to a temporary name, synced and renamed."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from lora_studio.errors import CheckpointError


def write_atomically(path: Path, content: bytes) -> None:
    """`path` holds either its old content or all of the new, whatever happens in between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not built from the name, which may already be as long as the file system allows.
    temporary = path.with_name(f".lora-studio-{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Run:
    """One run folder: recipe, manifest, metrics, checkpoints, previews, reports and the finished file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._metrics: TextIO | None = None

    @property
    def checkpoints_folder(self) -> Path:
        """Where checkpoints lie, one folder each, named by their step."""
        return self.folder / "checkpoints"

    def text(self, name: str, content: str) -> Path:
        """Write a text file of the run."""
        path = self.folder / name
        write_atomically(path, content.encode("utf-8"))
        return path

    def json(self, name: str, values: Mapping[str, Any]) -> Path:
        """Write a JSON file of the run."""
        return self.text(name, json.dumps(values, indent=2, ensure_ascii=False) + "\n")

    def metric(self, values: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl and flush it."""
        if self._metrics is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._metrics = (self.folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._metrics.write(json.dumps(values) + "\n")
        self._metrics.flush()

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl; a line cut short by a crash is left out."""
        path = self.folder / "metrics.jsonl"
        rows: list[dict[str, Any]] = []
        for line in path.read_text("utf-8").splitlines() if path.is_file() else []:
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return rows

    def forget_metrics_after(self, step: int) -> None:
        """Before resuming at `step`: the later lines, which will be written again, are taken out."""
        rows = [row for row in self.metrics() if row["step"] <= step]
        self.close()
        self.text("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def checkpoint(self, step: int, write: Callable[[Path], None], *, keep: int) -> Path:
        """Make the folder of a checkpoint all at once, then remove all but the newest `keep`.

        `write` fills an empty folder; only when everything in it is on the disk does it get its name.
        """
        final = self.checkpoints_folder / f"step_{step:06}"
        temporary = final.with_name(f".{final.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write(temporary)
        for path in (*temporary.iterdir(), temporary):
            _sync(path)
        shutil.rmtree(final, ignore_errors=True)  # the same step again, after a resume from an older one
        temporary.rename(final)
        for old in self.checkpoints()[:-keep]:
            shutil.rmtree(old)
        return final

    def checkpoints(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        return sorted(self.checkpoints_folder.glob("step_*"))

    def newest_checkpoint(self) -> Path:
        """The newest finished checkpoint; raises CheckpointError when there is none."""
        found = self.checkpoints()
        if not found:
            raise CheckpointError(f"there is no checkpoint in {self.folder}; start without --resume.")
        return found[-1]

    def close(self) -> None:
        """Close metrics.jsonl."""
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

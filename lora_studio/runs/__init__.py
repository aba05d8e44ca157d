"""The run folder and its only writer: everything is written to a temporary name, synced and renamed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

from lora_studio.errors import CheckpointError, RunFolderError
from lora_studio.files import _TEMPORARY, _write_synced, sync, write_atomically
from lora_studio.runs.lock import Holder, RunLock

VALIDATION = "validation.jsonl"  # a line a measurement
_FIRST_VALIDATION = "holdout.jsonl"  # the same in runs of the first version, whose lines have "pictures"
PIN = "keep"  # a file of this name in a checkpoint's folder: it is never removed


def run_folder(name: str) -> Path:
    return Path("runs") / name


class Run:
    """One run folder, with its only writer: what writes raises RunFolderError when the disk refuses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._metrics: FileIO | None = None
        self._lock = RunLock(folder)

    @property
    def checkpoints_folder(self) -> Path:
        return self.folder / "checkpoints"

    @contextmanager
    def writing(self) -> Iterator[None]:
        """An OSError inside becomes a RunFolderError that names the folder."""
        try:
            yield
        except OSError as error:
            raise RunFolderError(
                f"the run folder {self.folder} cannot be written to ({error.strerror or error})"
            ) from None

    def lock(self) -> Holder | None:
        """Have no other process train here until `unlock`; the holder that had left its lock behind.

        Raises StudioError while another one trains here.
        """
        with self.writing():
            return self._lock.acquire()

    def unlock(self) -> None:
        self._lock.release()

    def file(self, name: str, content: bytes) -> Path:
        with self.writing():
            write_atomically(self.folder / name, content)
        return self.folder / name

    def text(self, name: str, content: str) -> Path:
        return self.file(name, content.encode("utf-8"))

    def json(self, name: str, values: Mapping[str, Any]) -> Path:
        return self.text(name, json.dumps(values, indent=2, ensure_ascii=False) + "\n")

    def metric(self, values: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl; without a buffer, so that a full disk is noticed here."""
        with self.writing():
            if self._metrics is None:
                self._metrics = self._open("metrics.jsonl")
            _write_line(self._metrics, values)

    def append(self, name: str, values: Mapping[str, Any]) -> None:
        """Append one line to a JSON lines file of the run."""
        with self.writing(), self._open(name) as file:
            _write_line(file, values)

    def metrics(self) -> list[dict[str, Any]]:
        return self.lines("metrics.jsonl")

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The lines of a JSON lines file of the run, none if it is not there; a cut one is left out."""
        path = self.folder / name
        rows: list[dict[str, Any]] = []
        for line in path.read_text("utf-8").split("\n") if path.is_file() else []:  # names may hold U+2028
            with suppress(ValueError):
                rows.append(json.loads(line))
        return rows

    def forget_after(self, step: int, name: str = "metrics.jsonl") -> None:
        """Before resuming at `step`: the later lines, which will be written again, are taken out."""
        if (self.folder / name).exists():
            self.close()
            self.text(name, _as_lines(row for row in self.lines(name) if row["step"] <= step))

    def adopt_first_validation(self) -> None:
        """Before resuming a run of the first version: its measurements go on in validation.jsonl."""
        rows = [] if (self.folder / VALIDATION).exists() else self.lines(_FIRST_VALIDATION)
        if rows:
            renamed = ({"images" if key == "pictures" else key: row[key] for key in row} for row in rows)
            self.text(VALIDATION, _as_lines(renamed))

    def checkpoint(
        self, step: int, files: Mapping[str, bytes], *, keep: int, best: Collection[int] = ()
    ) -> Path:
        """Make the folder of a checkpoint all at once, then remove older ones.

        Only when everything in it is on the disk does it get its name. The newest `keep`, those of the steps
        `best`, and pinned ones stay.
        """
        final = self._checkpoint_of(step)
        temporary, former = (final.with_name(f".{final.name}.{end}") for end in ("tmp", "old"))
        with self.writing():
            try:
                for left_over in (temporary, former):
                    shutil.rmtree(left_over, ignore_errors=True)
                temporary.mkdir(parents=True)
                for name, content in files.items():
                    _write_synced(temporary / name, content)
                sync(temporary)
                if final.exists():  # the same step again, after a resume from an older one
                    final.rename(former)
                temporary.rename(final)
                sync(self.checkpoints_folder)  # before anything older is removed
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(former, ignore_errors=True)
            kept = {*self.checkpoints()[-keep:], *(self._checkpoint_of(one) for one in best)}
            for old in self.checkpoints():
                if old not in kept and not (old / PIN).exists():
                    shutil.rmtree(old)
        return final

    def checkpoints(self) -> list[Path]:
        return sorted(self.checkpoints_folder.glob("step_*"), key=lambda path: int(path.name[5:]))

    def newest_checkpoint(self) -> Path:
        """Raises CheckpointError when there is none."""
        if found := self.checkpoints():
            return found[-1]
        raise CheckpointError(f"there is no checkpoint in {self.folder}; start without --resume.")

    def remove_left_overs(self) -> None:
        """What a start that was killed had not yet given its name."""
        with self.writing():
            for path in list(self.folder.rglob(_TEMPORARY)):
                path.unlink()

    def close(self) -> None:
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None

    def _open(self, name: str) -> FileIO:
        self.folder.mkdir(parents=True, exist_ok=True)
        return (self.folder / name).open("ab", buffering=0)

    def _checkpoint_of(self, step: int) -> Path:
        return self.checkpoints_folder / f"step_{step:06}"


def _as_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write_line(file: FileIO, values: Mapping[str, Any]) -> None:
    line = (json.dumps(values, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
    while line:  # a disk that is nearly full takes a part, and refuses the rest
        line = line[file.write(line) :]


class ReadOnlyRun(Run):
    """Reads what is there, says where everything would be, and leaves the disk as it is."""

    def lock(self) -> None:
        return None

    def file(self, name: str, content: bytes) -> Path:
        return self.folder / name

    def metric(self, values: Mapping[str, Any]) -> None:
        pass

    def append(self, name: str, values: Mapping[str, Any]) -> None:
        pass

    def forget_after(self, step: int, name: str = "metrics.jsonl") -> None:
        pass

    def checkpoint(
        self, step: int, files: Mapping[str, bytes], *, keep: int, best: Collection[int] = ()
    ) -> Path:
        return self._checkpoint_of(step)

    def remove_left_overs(self) -> None:
        pass

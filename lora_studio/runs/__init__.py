"""The run folder and its only writer: everything is written to a temporary name, synced and renamed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from lora_studio.errors import CheckpointError, RunFolderError
from lora_studio.files import _TEMPORARY, _write_synced, set_aside, sync, write_atomically
from lora_studio.runs.lock import Holder, RunLock
from lora_studio.runs.reading import (
    MEASURED,
    STATE,
    damaged,
    measured_rows,
    read_lines,
    read_sealed,
    read_table,
)
from lora_studio.text import command_of

METRICS = "metrics.jsonl"  # a line a step
VALIDATION = "validation.jsonl"  # a line a measurement
SUMMARY = "summary.json"  # of a finished run
CHOICE = "choice.jsonl"  # a line a checkpoint that was measured for the choice
BEST = "best.json"  # which of them is taken, and why
_NUMBERS = {METRICS: ("loss", "learning_rate"), VALIDATION: ("loss", "relative"), CHOICE: ()}
_FIRST_VALIDATION = "holdout.jsonl"  # the same in runs of the first version, whose lines have "pictures"
_UNFINISHED = re.compile(r"\.(step_[0-9]{6,12})\.(tmp|old)")
PIN = "keep"  # a file of this name in a checkpoint's folder: it is never removed


def run_folder(name: str) -> Path:
    return Path("runs") / name


def resuming(folder: Path) -> str:
    """The command that goes on with a run, as a shell takes it."""
    return command_of("train", "--resume", folder)


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
        if self.lost:  # what is written now would lie in a new folder, without all that was before
            raise RunFolderError(
                f"the run folder {self.folder} was deleted, moved or emptied while the run needed it"
            )
        try:
            yield
        except OSError as error:
            why, at = error.strerror or error, str(error.filename2 or error.filename or "")
            where = (
                f" at {os.path.relpath(at, self.folder)}" if at.startswith(f"{self.folder}{os.sep}") else ""
            )
            raise RunFolderError(
                f"the run folder {self.folder} cannot be written to{where} ({why})"
            ) from None

    @property
    def lost(self) -> bool:
        """Whether a folder that was locked is not there any more."""
        return self._lock.lost

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
        return self.file(name, content.encode("utf-8", "backslashreplace"))

    def json(self, name: str, values: Mapping[str, Any]) -> Path:
        return self.text(name, json.dumps(values, indent=2, ensure_ascii=False) + "\n")

    def metric(self, values: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl; without a buffer, so that a full disk is noticed here."""
        with self.writing():
            if self._metrics is None:
                self._metrics = self._open(METRICS)
            _write_line(self._metrics, values)

    def append(self, name: str, values: Mapping[str, Any]) -> None:
        """Append one line to a JSON lines file of the run."""
        with self.writing(), self._open(name) as file:
            _write_line(file, values)

    def metrics(self) -> list[dict[str, Any]]:
        return self.measurements(METRICS)

    def measurements(self, name: str = VALIDATION) -> list[dict[str, Any]]:
        """The lines of validation.jsonl, metrics.jsonl or choice.jsonl, without damaged ones."""
        return measured_rows(self.folder / name, _NUMBERS[name])[0]

    def measured_until(self, step: int) -> str:
        """sha256 of the measurements up to a step, by which the best checkpoint is chosen."""
        rows = [row for row in self.measurements() if row["step"] <= step]
        return hashlib.sha256(_as_lines(rows).encode("utf-8", "backslashreplace")).hexdigest()

    def is_as_measured(self, step: int) -> bool:
        """Whether validation.jsonl has what it had when this checkpoint was saved, as far as that says so."""
        return read_table(self.checkpoint_of(step) / STATE).get(MEASURED) in (
            None,
            self.measured_until(step),
        )

    def lines(self, name: str) -> list[dict[str, Any]]:
        """All of a JSON lines file, none if it is not there. Raises CheckpointError if one is damaged."""
        return read_lines(self.folder / name) if os.path.lexists(self.folder / name) else []

    def forget_after(self, step: int, name: str = METRICS) -> int:
        """Before resuming at `step`: the later lines, which will be written again, are taken out.

        How many were damaged and are taken out, too.
        """
        return self.forget_where(name, lambda row: row["step"] <= step)

    def forget_where(self, name: str, kept: Callable[[Mapping[str, Any]], bool]) -> int:
        """Take out the lines of which that is not true, and damaged ones; how many were damaged."""
        if not os.path.lexists(self.folder / name):
            return 0
        self.close()
        rows, num_damaged = measured_rows(self.folder / name, _NUMBERS[name])
        self.text(name, _as_lines(row for row in rows if kept(row)))
        return num_damaged

    def chosen_step(self) -> int | None:
        """By best.json; None if there is none. Raises CheckpointError if it is not as the run wrote it."""
        path = self.folder / BEST
        step = read_sealed(path).get("step") if os.path.lexists(path) else None
        if step is not None and type(step) is not int:
            raise damaged(path, f"its step is {step!r}")
        return step

    def file_step(self) -> int | None:
        """The step that a finished run's file is made of; None if it is not finished, or that step not kept.

        Raises StudioError if its summary is damaged.
        """
        path = self.folder / SUMMARY
        taken = read_table(path).get("checkpoint") if path.is_file() else None
        step = taken.get("step") if isinstance(taken, dict) else None
        return step if isinstance(step, int) and step in map(step_of, self.checkpoints()) else None

    def adopt_first_validation(self) -> None:
        """Before resuming a run of the first version: its measurements go on in validation.jsonl."""
        if not (self.folder / VALIDATION).exists():
            rows, _ = measured_rows(self.folder / _FIRST_VALIDATION, _NUMBERS[VALIDATION])
            renamed = ({"images" if key == "pictures" else key: row[key] for key in row} for row in rows)
            if rows:
                self.text(VALIDATION, _as_lines(renamed))

    def checkpoint(
        self, step: int, files: Mapping[str, bytes], *, keep: int, best: Collection[int] = ()
    ) -> Path:
        """Make the folder of a checkpoint all at once, then remove older ones.

        Only when everything in it is on the disk does it get its name. The newest `keep`, those of the steps
        `best`, and pinned ones stay.
        """
        final = self.checkpoint_of(step)
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
            kept = {*self.checkpoints()[-keep:], *(self.checkpoint_of(one) for one in best)}
            for old in self.checkpoints():
                if old not in kept and not (old / PIN).exists():
                    shutil.rmtree(old)
        return final

    def checkpoints(self) -> list[Path]:
        """By their steps; other folders beside them, such as copies, are none."""
        found = (path for path in self.checkpoints_folder.glob("step_*") if _is_checkpoint(path))
        return sorted(found, key=step_of)

    def newest_checkpoint(self) -> Path:
        """Raises CheckpointError when there is none."""
        if found := self.checkpoints():
            return found[-1]
        raise CheckpointError(f"there is no checkpoint in {self.folder}; start without --resume.")

    def set_aside(self, checkpoint: Path) -> Path:
        """A damaged one gets another name, by which it counts as none."""
        with self.writing():
            return set_aside(checkpoint, ".damaged")

    def remove_left_overs(self) -> None:
        """What a start that was killed had not yet given its name; a checkpoint without one gets it back."""
        with self.writing():
            for path in list(self.folder.rglob(_TEMPORARY)):
                if path.is_file() or path.is_symlink():
                    path.unlink()
            for path in list(self.checkpoints_folder.glob(".step_*")):
                if (match := _UNFINISHED.fullmatch(path.name)) and path.is_dir():
                    if match[2] == "old" and not path.with_name(match[1]).exists():
                        path.rename(path.with_name(match[1]))
                    else:
                        shutil.rmtree(path)

    def close(self) -> None:
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None

    def _open(self, name: str) -> FileIO:
        self.folder.mkdir(parents=True, exist_ok=True)
        return (self.folder / name).open("ab", buffering=0)

    def checkpoint_of(self, step: int) -> Path:
        """Its folder, which need not be there."""
        return self.checkpoints_folder / f"step_{step:06}"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def _is_checkpoint(path: Path) -> bool:
    is_named = re.fullmatch(r"step_[0-9]{6,12}", path.name)
    return is_named is not None and path.name == f"step_{step_of(path):06}" and path.is_dir()


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

    def forget_where(self, name: str, kept: Callable[[Mapping[str, Any]], bool]) -> int:
        return 0

    def checkpoint(
        self, step: int, files: Mapping[str, bytes], *, keep: int, best: Collection[int] = ()
    ) -> Path:
        return self.checkpoint_of(step)

    def set_aside(self, checkpoint: Path) -> Path:
        return checkpoint

    def remove_left_overs(self) -> None:
        pass

"""What can go wrong for a user, and what messages are made of.

Each message is one sentence: what, the value, what is allowed, what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_LONGEST_REASON = 300  # letters; libraries show a value of thousands whole


def reason_of(error: Exception) -> str:
    """The first line of what a library says about its error, to stand inside a sentence of ours."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return line if len(line) <= _LONGEST_REASON else f"{line[: _LONGEST_REASON - 4]} ..."


def preview_names(names: Iterable[str], *, limit: int = 3) -> str:
    """The first names for a message: "a.png, b.png, c.png and 4 more"."""
    listed = list(names)
    rest = len(listed) - limit
    return ", ".join(listed[:limit]) + (f" and {rest} more" if rest > 0 else "")


_LONGEST = 1500  # letters of a line


def _cut(line: str) -> str:
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 4 :]}"


class StudioError(Exception):
    """A user's mistake or a fault of their files: printed without a traceback, and the exit code is 2."""

    told_by_main = False  # whether the main process raises it, too, and reports it

    def __str__(self) -> str:
        """Of a line with a value of thousands of letters its beginning and its end."""
        return "\n".join(map(_cut, super().__str__().split("\n")))


class RecipeError(StudioError):
    """The recipe cannot be read or asks for something that does not exist."""


class RenamedOption(FutureWarning):
    """A recipe uses an old name of an option. The command line prints it."""


class DatasetError(StudioError):
    """The images or captions cannot be used as they are."""


class CaptionError(StudioError):
    """A captioner cannot do what it was asked for, or captions cannot be written."""


class BaseModelError(StudioError):
    """The base model is missing, damaged or of another kind."""


class CheckpointError(StudioError):
    """A checkpoint is missing, damaged or belongs to another recipe."""


class RunFolderError(StudioError):
    """The run folder cannot be written to; the message names the last good checkpoint."""


class OutOfMemory(StudioError):
    """The device has not enough memory, however small the pieces are; the message says what needs less."""


class TrainingDiverged(StudioError):
    """The loss or the gradients are not finite or missing; the message names the last good checkpoint."""


class ProcessLost(StudioError):
    """One of several processes of a run has ended; the message names the last good checkpoint."""


class DamagedFile(StudioError):
    """What should be a safetensors file is something else, truncated or corrupt."""


class ExportMismatch(StudioError):
    """A written LoRA file is not what was trained."""


class Interrupted(KeyboardInterrupt):
    """A run was stopped after this step, with a checkpoint to resume from.

    By Ctrl-C, SIGTERM, or SIGHUP as a terminal sends that closes. No `except Exception` takes it for a fault,
    so a loop over recipes ends, too.
    """

    def __init__(self, folder: Path, step: int) -> None:
        super().__init__(f"stopped after step {step}; resume the run in {folder}")
        self.folder, self.step = folder, step

"""Find and replace over the captions of a folder: looked at first, then written with a backup."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lora_studio.data.captions import (
    Backup,
    CaptionFile,
    caption_lines,
    find_captions,
    read_caption_file,
    replace_caption,
    split_encoding,
)
from lora_studio.data.manifest import Record
from lora_studio.errors import CaptionError


@dataclass(frozen=True)
class CaptionChange:
    """A caption file that holds what was sought."""

    name: str  # the file's, with its folder below the one looked at
    file: CaptionFile
    data: bytes  # what it would hold
    fault: str = ""  # why it stays as it is

    @property
    def after(self) -> str:
        return " ".join(caption_lines(self.data))


def find_changes(
    records: Sequence[Record], find: str, replace: str, *, regex: bool = False
) -> list[CaptionChange]:
    """Every caption with `find` in it, and what it would be; encoding and line ends stay.

    With `regex`, `find` is a regular expression and `replace` may hold its groups. Raises CaptionError if
    either is not valid.
    """
    if not find:
        raise CaptionError("--find is empty; say which words are to be found.")
    try:
        pattern = re.compile(find if regex else re.escape(find))
        found = [
            _change(record, file, pattern, replace if regex else lambda match: replace)
            for record, file in zip(records, find_captions(records), strict=True)
            if file.text
        ]
        return [change for change in found if change]
    except (re.error, IndexError) as error:
        raise CaptionError(
            f"--find {find!r} with --replace {replace!r} is no regular expression ({error}); "
            "leave out --regex to find the words as they are."
        ) from None


def apply_changes(
    changes: Sequence[CaptionChange], *, folder: Path
) -> tuple[list[CaptionChange], Path | None]:
    """Write the changes; returns them with the fault of each that was not, and the folder of the backup.

    Raises CaptionError if the disk refuses.
    """
    backup = Backup(folder)
    done = []
    for change in changes:
        if not change.fault and read_caption_file(change.file.path) != change.file:
            change = CaptionChange(change.name, change.file, change.data, "it was changed meanwhile")
        if not change.fault:
            replace_caption(change.file.path, change.data, before=change.file.data, backup=backup)
        done.append(change)
    return done, backup.folder


def _change(
    record: Record, file: CaptionFile, pattern: re.Pattern[str], replace: str | Callable[[re.Match[str]], str]
) -> CaptionChange | None:
    mark, encoding, text = split_encoding(file.data or b"")
    new, count = pattern.subn(replace, text)
    if not count:
        return None
    data = mark + new.encode(encoding)
    name = str(PurePosixPath(record.name).with_name(file.path.name))
    return CaptionChange(name, file, data, "" if caption_lines(data) else "nothing would be left of it")

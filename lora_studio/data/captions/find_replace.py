"""Caption files replaced: with a copy of what they were, and by find and replace over a folder of them."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from lora_studio.data.captions import (
    CaptionFile,
    caption_lines,
    find_captions,
    read_caption_file,
    split_encoding,
)
from lora_studio.data.manifest import Record
from lora_studio.errors import CaptionError
from lora_studio.files import write_atomically
from lora_studio.text import printable, shown

_NO_ACCENT = "(?![\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f])"
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
    """Write `data` over `before`, which is kept unless blank. CaptionError: refused, nothing is changed."""
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
    if printable(replace) != replace:
        raise CaptionError(f"--replace {shown(printable(replace))} is no Unicode text; write it anew.")
    try:
        ways = _ways(find, replace, regex=regex)
    except (re.error, IndexError, OverflowError, RecursionError) as error:
        raise CaptionError(
            f"--find {find!r} with --replace {replace!r} is no regular expression ({error}); "
            "leave out --regex to find the words as they are."
        ) from None
    listed = [(one, file) for one, file in zip(records, find_captions(records), strict=True) if file.text]
    read = [split_encoding(file.data or b"") for _, file in listed]
    texts = [text for *_, text in read]
    found = _in_time(find, ways, texts) if regex else [_replaced(ways, text) for text in texts]
    changes = []
    for (record, file), (mark, encoding, _), (new, count) in zip(listed, read, found, strict=True):
        if count:
            data, name = mark + new.encode(encoding), PurePosixPath(record.name).with_name(file.path.name)
            changes.append(CaptionChange(str(name), file, data, _fault(data, file)))
    return changes


_Ways = Sequence[tuple[str, str]]  # a pattern, and what takes the place of what it finds
REGEX_SECONDS = 20.0  # of all captions; 100,000 take a few


def _replaced(ways: _Ways, text: str) -> tuple[str, int]:
    count = 0
    for pattern, words in ways:
        text, times = re.subn(pattern, words, text)
        count += times
    return text, count


def _in_time(find: str, ways: _Ways, texts: Sequence[str]) -> list[tuple[str, int]]:
    """`_replaced` of each text, in a process that can be ended: Python's own search cannot, on every system.

    Raises CaptionError after `REGEX_SECONDS`: some expressions try exponentially many ways to match.
    """
    script = (
        f"from __future__ import annotations; import json, re, sys\n{inspect.getsource(_replaced)}\n"
        "ways, texts = json.load(sys.stdin)\n"
        "json.dump([_replaced(ways, text) for text in texts], sys.stdout)"
    )
    command = [sys.executable, "-I", "-W", "ignore", "-c", script]
    try:
        done = subprocess.run(
            command, input=json.dumps([ways, texts]), capture_output=True, text=True, timeout=REGEX_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise CaptionError(
            f"--find {find!r} was not done after {REGEX_SECONDS:g} s; a repetition of a repetition, as in "
            "(a+)+, is tried in endlessly many ways: write one, as in a+."
        ) from None
    found: list[tuple[str, int]] = json.loads(done.stdout)
    return found


def _ways(find: str, replace: str, *, regex: bool) -> _Ways:
    """What finds the words however their accents are spelt, each with what takes their place, spelt so.

    The rest of a file stays as it is spelt. A letter is not found where an accent of its own follows. Raises
    what `re` does for what is no expression.
    """
    found: dict[str, str] = {}
    for form in ("NFC", "NFD"):
        words, instead = unicodedata.normalize(form, find), unicodedata.normalize(form, replace)
        pattern = words if regex else re.escape(words) + _NO_ACCENT
        found.setdefault(pattern, instead if regex else instead.replace("\\", r"\\"))
    found.setdefault(find if regex else re.escape(find) + _NO_ACCENT, next(iter(found.values())))
    for pattern, words in found.items():
        re.sub(pattern, words, "")
    return list(found.items())


def _fault(data: bytes, file: CaptionFile) -> str:
    """Why a file shall not become this."""
    before, after = len(file.lines), len(caption_lines(data))
    if not after:
        return "nothing would be left of it"
    if after > before:
        return f"it would hold {after} captions in place of {before}, as each line is one"
    return ""


def apply_changes(
    changes: Sequence[CaptionChange], *, folder: Path
) -> tuple[list[CaptionChange], Path | None]:
    """Write them -> the same with the fault of each that was not, and the backup. CaptionError: refused."""
    backup = Backup(folder)
    done = []
    for change in changes:
        if not change.fault and read_caption_file(change.file.path) != change.file:
            change = replace(change, fault="it was changed meanwhile")
        if not change.fault:
            replace_caption(change.file.path, change.data, before=change.file.data, backup=backup)
        done.append(change)
    return done, backup.folder

"""The caption file of an image: which one it is, what it says, how it was saved, and how it is replaced."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from lora_studio.data.captions.ledger import Ledgers
from lora_studio.data.images import (
    CAPTION_SUFFIXES,
    UnreadableFile,
    caption_files,
    decode_text,
    read_bytes,
    stem_key,
)
from lora_studio.data.manifest import FOLDER_NAME, Manifest, Record
from lora_studio.errors import CaptionError, DatasetError, preview_names
from lora_studio.files import write_atomically

MAX_CAPTION_BYTES = 1_000_000

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@dataclass(frozen=True)
class CaptionFile:
    """The file that training reads for an image, or the one that would be written."""

    path: Path
    data: bytes | None = None  # None: there is no such file
    fault: str = ""  # why it cannot be read; such a file is never written over

    @property
    def lines(self) -> tuple[str, ...]:
        return () if self.fault or self.data is None else caption_lines(self.data)

    @property
    def text(self) -> str:
        return " ".join(self.lines)


def find_captions(records: Iterable[Record]) -> list[CaptionFile]:
    """For each image the first caption file that says something, else the one to write."""
    beside: dict[Path, dict[str, list[Path]]] = {}
    found = []
    for record in records:
        folder = Path(record.path).parent
        if folder not in beside:
            beside[folder] = caption_files(folder)
        candidates = [read_caption_file(path) for path in beside[folder].get(stem_key(record.name), [])]
        candidates.append(CaptionFile(Path(record.path).with_suffix(CAPTION_SUFFIXES[0])))
        found.append(next((file for file in candidates if file.fault or file.text), candidates[0]))
    return found


def read_caption_file(path: Path) -> CaptionFile:
    """The file as it is now; what is wrong with it stands in `fault`."""
    if not os.path.lexists(path):
        return CaptionFile(path)
    try:
        data = read_bytes(path, max_bytes=MAX_CAPTION_BYTES)
    except UnreadableFile as reason:
        return CaptionFile(path, fault=str(reason).removeprefix("cannot be read: "))
    try:
        caption_lines(data)
    except UnicodeDecodeError:
        return CaptionFile(path, data, fault="neither UTF-8 nor UTF-16 with its mark")
    return CaptionFile(path, data)


def caption_lines(data: bytes) -> tuple[str, ...]:
    """A caption file's lines that are not empty, without the spaces around them.

    Raises UnicodeDecodeError unless it is UTF-8, or UTF-16 with its mark.
    """
    return tuple(line.strip() for line in decode_text(data).splitlines() if line.strip())


def split_encoding(data: bytes) -> tuple[bytes, str, str]:
    """A file's bytes -> its byte order mark, the name of its encoding, its text with its own line ends."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return mark, encoding, data[len(mark) :].decode(encoding)
    return b"", "utf-8", data.decode("utf-8")


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


def read_captions(manifest: Manifest, *, instance_prompt: str = "") -> Manifest:
    """The manifest with captions from the files beside the images, else with `instance_prompt`.

    A caption beside its image wins over one that a metadata file lists, and that over the instance prompt;
    the name of a `<repeats>_<name>` folder comes last. An empty file counts as none. Raises DatasetError that
    names the caption files that are no text, or the images without a caption.
    """
    instance_prompt = instance_prompt.strip()
    files = dict(zip(manifest.used, find_captions(manifest.used), strict=True))
    faults = [f"{file.path.name} ({file.fault})" for file in files.values() if file.fault]
    ledgers = Ledgers()
    records = [
        _captioned(record, files[record], ledgers, instance_prompt) if record in files else record
        for record in manifest.records
    ]
    missing = [record.name for record in records if not record.excluded and not record.caption]
    if faults:
        raise DatasetError(f"caption files cannot be read: {preview_names(faults)}; save them as UTF-8 text.")
    if missing:
        count = f"{len(missing)} of {len(manifest.used)} images have no caption: {preview_names(missing)}"
        raise DatasetError(
            f"{count}; write what is in each into a .txt file of the same name, let `lora-studio caption` do "
            "that, or set data.instance_prompt."
        )
    return Manifest(tuple(records))


def _captioned(record: Record, file: CaptionFile, ledgers: Ledgers, instance_prompt: str) -> Record:
    if file.text:
        entry = ledgers.author(file.path, file.data)
        lines = file.lines if len(file.lines) > 1 else ()
        author = entry.author if entry else "sidecar"
        return replace(record, caption=file.text, lines=lines, captioned_by=author)
    if record.caption and (record.captioned_by != FOLDER_NAME or not instance_prompt):
        return record
    return replace(record, caption=instance_prompt, captioned_by="instance prompt" if instance_prompt else "")

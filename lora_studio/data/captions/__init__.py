"""The caption file of an image: which one it is, what it says, how it was saved, and who wrote it."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache, cached_property
from pathlib import Path

from lora_studio.data.images import (
    CAPTION_SUFFIXES,
    METADATA_NAMES,
    UnreadableFile,
    caption_files,
    decode_text,
    read_bytes,
    stem_key,
)
from lora_studio.data.manifest import FOLDER_NAME, INSTANCE_PROMPT, Manifest, Record
from lora_studio.errors import CaptionError, DatasetError, preview_names
from lora_studio.text import same_text

MAX_CAPTION_BYTES = 1_000_000
_UTF_16 = ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
LEDGER = ".lora-studio-captions.jsonl"
Setting = str | int | float


@dataclass(frozen=True)
class CaptionFile:
    """The file that training reads for an image, or the one that would be written."""

    path: Path
    data: bytes | None = None  # None: there is no such file
    fault: str = ""  # why it cannot be read; such a file is never written over
    unread: tuple[str, ...] = field(default=(), compare=False)  # other files of the image that say otherwise

    @cached_property
    def lines(self) -> tuple[str, ...]:
        return () if self.fault or self.data is None else caption_lines(self.data)

    @cached_property
    def text(self) -> str:
        return " ".join(self.lines)


def find_captions(records: Iterable[Record]) -> list[CaptionFile]:
    """For each image the first caption file that says something, else the one to write."""
    beside = cache(caption_files)  # each folder is listed once
    found = []
    for record in records:
        there = beside(os.path.dirname(record.path)).get(stem_key(record.name), [])
        candidates = [read_caption_file(one) for one in there]
        if not candidates:
            candidates = [CaptionFile(Path(record.path).with_suffix(CAPTION_SUFFIXES[0]))]
        chosen = next((file for file in candidates if file.fault or file.text), candidates[0])
        others = tuple(file.path.name for file in candidates if file.text and file.text != chosen.text)
        found.append(replace(chosen, unread=others) if others else chosen)
    return found


def read_caption_file(path: Path) -> CaptionFile:
    """The file as it is now; what is wrong with it stands in `fault`."""
    if not os.path.lexists(path):
        return CaptionFile(path)
    try:
        found = CaptionFile(path, read_bytes(path, max_bytes=MAX_CAPTION_BYTES))
    except UnreadableFile as reason:
        return CaptionFile(path, fault=str(reason).removeprefix("cannot be read: "))
    try:
        _ = found.lines  # kept
    except UnicodeDecodeError:
        return replace(found, fault="neither UTF-8 nor UTF-16 with its mark")
    return found


def caption_lines(data: bytes) -> tuple[str, ...]:
    """Lines that are not empty, stripped, accents as in NFC: so captions, tags and trigger words compare.

    Raises UnicodeDecodeError unless UTF-8, or UTF-16 with its mark.
    """
    lines = same_text(decode_text(data)).splitlines()
    return tuple(line.strip() for line in lines if line.strip())


def split_encoding(data: bytes) -> tuple[bytes, str, str]:
    """A file's bytes -> its byte order mark, the name of its encoding, its text with its own line ends."""
    for mark, encoding in ((codecs.BOM_UTF8, "utf-8"), *_UTF_16):
        if data.startswith(mark):
            return mark, encoding, data[len(mark) :].decode(encoding)
    return b"", "utf-8", data.decode("utf-8")


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
        raise DatasetError(
            f"{len(missing)} of {len(manifest.used)} images have no caption: {preview_names(missing)}; write "
            "what is in each into a .txt file of the same name, let `lora-studio caption` do that, or set "
            "data.instance_prompt."
        )
    return Manifest(tuple(records))


def _captioned(record: Record, file: CaptionFile, ledgers: Ledgers, instance_prompt: str) -> Record:
    if file.text:
        entry = ledgers.author(file.path, file.data)
        lines = file.lines if len(file.lines) > 1 else ()
        author = entry.author if entry else "sidecar"
        note = "; ".join(filter(None, [record.note, _unread(record, file)]))
        return replace(record, caption=file.text, lines=lines, captioned_by=author, note=note)
    if record.caption and (record.captioned_by != FOLDER_NAME or not instance_prompt):
        return record
    return replace(record, caption=instance_prompt, captioned_by=INSTANCE_PROMPT if instance_prompt else "")


def _unread(record: Record, file: CaptionFile) -> str:
    """What else says something of the image, and is not read."""
    listed = record.captioned_by in METADATA_NAMES and record.caption not in ("", file.text)
    if not (names := [*file.unread, *([record.captioned_by] if listed else [])]):
        return ""
    says, is_not = ("says", "is") if len(names) == 1 else ("say", "are")
    return f"{' and '.join(names)} {says} otherwise, and {is_not} not read: {file.path.name} is"


@dataclass(frozen=True)
class LedgerEntry:
    """A caption that was written: by whom, how, from which image, and what it was."""

    caption: str  # the file's name
    image: str  # the file's name
    author: str  # the captioner's name in its table
    settings: Mapping[str, Setting]  # what the captioner was told
    wording: Mapping[str, str]  # trigger, prefix and the like
    image_sha256: str
    caption_sha256: str  # of the caption file's bytes; another hash means that somebody edited it since
    written_at: str  # ISO 8601, UTC

    def same_work(self, other: LedgerEntry) -> bool:
        """Whether the same captioner with the same settings looked at the same image."""
        names = ("author", "settings", "wording", "image_sha256")
        return all(getattr(self, name) == getattr(other, name) for name in names)


class Ledger:
    """One JSON line for each caption of a folder that a captioner wrote, in a file beside the captions.

    Only added to; a line cut short by a crash is passed over.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEDGER
        try:
            text = self.path.read_text("utf-8", errors="replace")
        except FileNotFoundError:
            text = ""
        except OSError as error:
            raise CaptionError(
                f"{self.path}, which says who wrote the captions, cannot be read "
                f"({error.strerror or error}); make it readable, or remove it if all captions are yours."
            ) from None
        entries = (entry for line in text.splitlines() if (entry := _parse(line)))
        self._entries = {_key(entry.caption, entry.caption_sha256): entry for entry in entries}

    def author(self, path: Path, data: bytes) -> LedgerEntry | None:
        """The entry of the captioner that wrote these bytes into the caption file; None: a person did."""
        return self._entries.get(_key(path.name, sha256(data)))

    def add(self, entry: LedgerEntry) -> None:
        """Append the entry, before its caption is written: a caption without an entry counts as by hand."""
        line = (json.dumps(asdict(entry), ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        try:
            with self.path.open("ab+") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    line = line if file.read(1) == b"\n" else b"\n" + line  # a crash cut the last one short
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            reason = error.strerror or error
            raise CaptionError(
                f"{self.path} cannot be written to ({reason}); make the folder writable."
            ) from None
        self._entries[_key(entry.caption, entry.caption_sha256)] = entry


class Ledgers(dict[Path, Ledger]):
    """By folder, each read when it is first asked for."""

    def __missing__(self, folder: Path) -> Ledger:
        self[folder] = Ledger(folder)
        return self[folder]

    def author(self, caption: Path, data: bytes | None) -> LedgerEntry | None:
        """As `Ledger.author`; None also if there is no file."""
        return self[caption.parent].author(caption, data) if data else None


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _key(name: str, digest: str) -> tuple[str, str]:
    return same_text(name), digest


def _parse(line: str) -> LedgerEntry | None:
    """None for a line that is damaged or of another version."""
    try:
        values = {key.replace("picture", "image"): one for key, one in json.loads(line).items()}  # old names
        entry = LedgerEntry(**{field.name: values[field.name] for field in fields(LedgerEntry)})
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    texts = (entry.caption, entry.image, entry.author, entry.image_sha256, entry.caption_sha256)
    whole = all(isinstance(text, str) for text in texts)
    return entry if whole and isinstance(entry.settings, dict) and isinstance(entry.wording, dict) else None

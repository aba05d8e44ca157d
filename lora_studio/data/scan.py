"""A folder -> a manifest with one record for every file found, also for those that cannot be used."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from lora_studio.data.files import UnreadableFile, read_bytes
from lora_studio.data.manifest import Manifest, Record
from lora_studio.data.names import is_caption, is_junk, some, stem_key
from lora_studio.data.pictures import FORMATS_IN_WORDS, NOT_A_PICTURE, decode, load_picture
from lora_studio.errors import DatasetError

__all__ = ["MAX_ASPECT", "load_picture", "scan"]

MAX_ASPECT = 10  # a longer strip would lose most of itself to the crop, and need gigabytes when it is resized


def scan(folder: Path, *, repeats: int = 1, min_side: int = 16, background: str = "white") -> Manifest:
    """One record for each file in `folder`, by name; subfolders are not searched.

    Pictures are decoded once, fully. Captions beside them get no record of their own. Raises DatasetError if
    there is nothing to train on or if two pictures would share a caption file.
    """
    records: list[Record] = []
    captions: list[Record] = []
    for path in _entries(folder):
        record = Record(path=str(path), name=path.name, repeats=repeats)
        if is_junk(path.name):
            records.append(replace(record, excluded="junk"))
        elif path.is_dir():
            records.append(replace(record, excluded="a folder; subfolders are not searched"))
        elif is_caption(path.name):
            captions.append(record)
        else:
            records.append(_examine(record, min_side=min_side, background=background))
    records = _without_duplicates(records)
    _refuse_shared_stems(records)
    records += _orphans(captions, records)
    manifest = Manifest(tuple(sorted(records, key=lambda record: record.name)))
    if not manifest.used:
        raise DatasetError(_nothing_usable(folder, manifest))
    return manifest


def _entries(folder: Path) -> list[Path]:
    """What lies in the folder, by name, as absolute paths."""
    try:
        entries = sorted(folder.absolute().iterdir(), key=lambda path: path.name)
    except FileNotFoundError:
        reason = "does not exist"
    except NotADirectoryError:
        reason = "is not a folder"
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    else:
        if entries:
            return entries
        reason = "is empty"
    advice = f"set data.images to a folder of {FORMATS_IN_WORDS} pictures"
    raise DatasetError(f"the folder of pictures {folder} {reason}; {advice}.") from None


def _examine(record: Record, *, min_side: int, background: str) -> Record:
    """The record with its hash and size, or with the reason why the file cannot be used."""
    try:
        data = read_bytes(Path(record.path))
    except UnreadableFile as reason:
        return replace(record, excluded=str(reason))
    record = replace(record, sha256=hashlib.sha256(data).hexdigest())
    try:
        picture = decode(data, background=background)
    except UnreadableFile as reason:
        return replace(record, excluded=str(reason))
    width, height = picture.image.size
    excluded = _unfit(width, height, min_side)
    if picture.opacity is None:
        return replace(record, width=width, height=height, note=picture.note, excluded=excluded)
    if picture.opacity.getextrema() == (0, 0):
        excluded = excluded or "clear all over: there is nothing to see"
    record = replace(record, background=background)
    return replace(record, width=width, height=height, note=picture.note, excluded=excluded)


def _unfit(width: int, height: int, min_side: int) -> str:
    """The reason why a picture of this size is left out, or nothing."""
    if min(width, height) < min_side:
        return f"too small: {width}x{height}; both sides must be {min_side} pixels or more"
    if max(width, height) > MAX_ASPECT * min(width, height):
        return f"too long: {width}x{height}; one side may be at most {MAX_ASPECT} times the other"
    return ""


def _without_duplicates(records: Iterable[Record]) -> list[Record]:
    """The records, of which only the first of equal pictures stays used."""
    first: dict[str, str] = {}
    kept = []
    for record in records:
        if not record.excluded:
            original = first.setdefault(record.sha256, record.name)
            if original != record.name:
                record = replace(record, excluded=f"the same bytes as {original}")
        kept.append(record)
    return kept


def _refuse_shared_stems(records: Iterable[Record]) -> None:
    """Raise DatasetError, naming the files, if one caption file would belong to two pictures."""
    by_stem: dict[str, list[str]] = defaultdict(list)
    for record in records:
        if not record.excluded:
            by_stem[stem_key(record.name)].append(record.name)
    shared = [" and ".join(names) for names in by_stem.values() if len(names) > 1]
    if shared:
        advice = "a caption file could belong to either, so rename or remove one of each"
        raise DatasetError(f"pictures have the same name but for the ending: {some(shared)}; {advice}.")


def _orphans(captions: Iterable[Record], pictures: Iterable[Record]) -> list[Record]:
    """Records of the caption files that no picture claims, be it a used or an excluded one."""
    claimed = {stem_key(record.name) for record in pictures if record.excluded not in ("junk", NOT_A_PICTURE)}
    reason = "no picture of this name"
    return [replace(record, excluded=reason) for record in captions if stem_key(record.name) not in claimed]


def _nothing_usable(folder: Path, manifest: Manifest) -> str:
    found = some(f"{record.name} ({record.excluded})" for record in manifest.excluded)
    advice = f"set data.images to a folder of {FORMATS_IN_WORDS} pictures"
    return f"the folder of pictures {folder} holds no usable picture, only {found}; {advice}."

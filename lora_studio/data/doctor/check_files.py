"""Files that are not used, and why; files that get in each other's way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Literal

from lora_studio.data.doctor.finding import Finding, Severity
from lora_studio.data.doctor.look import Case, grouped
from lora_studio.data.images import is_caption, is_image, is_junk, is_mask, is_metadata, place
from lora_studio.data.images.decode import LISTED, advice_for
from lora_studio.data.manifest import Record
from lora_studio.data.scan import shared_stems
from lora_studio.data.scan.layouts import MASK_FOLDER, is_by_choice
from lora_studio.text import plural

_NAME_IT = "Give it the name of its image, or remove it."
_SUBJECT = 5  # DreamBooth, arXiv 2208.12242, takes 3 to 5 of a subject
_STYLE = 10


def refused(case: Case) -> Iterator[Finding]:
    """What else would stop a training."""
    return (Finding("error", "", fault, "Mend it; a training stops at it.") for fault in case.faults)


def same_name(case: Case) -> Iterator[Finding]:
    """Images to which the same caption file would belong."""
    for first, *others in shared_stems(case.manifest.usable):
        for other in others:
            detail = f"{PurePosixPath(first.name).name} has the same name but for the ending"
            advice = "Rename or remove one of the two: a caption file could belong to either."
            yield Finding("error", other.name, detail, advice, other=first.name)


def unusable(case: Case) -> Iterator[Finding]:
    """Images that cannot be read, or that are too small, too long or empty; an error if most are lost so."""
    lost = list(_left_out(case, "image"))
    severity: Severity = "error" if len(lost) > len(case.manifest.usable) else "warning"
    for record in lost:
        advice = advice_for(record.excluded)
        yield Finding(severity, record.name, record.excluded, f"{advice[0].upper()}{advice[1:]}.")


def orphan_caption(case: Case) -> Iterator[Finding]:
    """Caption files without an image."""
    lost = {place(record.name) for record in _left_out(case, "image")}
    for record in _left_out(case, "caption"):
        if place(record.name) not in lost:
            yield Finding("warning", record.name, record.excluded, _NAME_IT)


def ignored(case: Case) -> Iterator[Finding]:
    """Everything else that is not used."""
    for record in _left_out(case, "other"):
        severity, advice = _weight(record)
        yield Finding(severity, record.name, record.excluded, advice)


def read_note(case: Case) -> Iterator[Finding]:
    """How files were read that could be read in several ways."""
    advice = "Look whether it is shown as you mean it."
    return (Finding("note", one.name, one.note, advice) for one in case.manifest.usable if one.note)


def _left_out(case: Case, sort: Literal["image", "caption", "other"]) -> Iterator[Record]:
    """Excluded records, but for copies of images that are used: the checks of duplicates have those."""
    kept = {record.sha256 for record in case.manifest.usable}
    for record in case.manifest.records:
        if record.excluded and not (record.sha256 and record.sha256 in kept) and _sort(record) == sort:
            yield record


def _sort(record: Record) -> Literal["image", "caption", "other"]:
    """What the file seems to be by its name, if it was meant to be used."""
    name = PurePosixPath(record.name).name
    if is_by_choice(record.excluded):
        return "other"
    beside = is_junk(name) or is_mask(name) or os.path.isdir(record.path)
    if record.excluded.startswith(LISTED) or (not beside and (is_image(name) or record.width)):
        return "image"
    return "caption" if is_caption(record.name) else "other"


def _weight(record: Record) -> tuple[Severity, str]:
    """With advice; a folder with images in it, or a mask, was probably meant to be used."""
    if is_mask(record.name):
        return "warning", _NAME_IT
    if is_metadata(PurePosixPath(record.name).name):
        return "warning", "Correct the list, or remove those lines."
    folder, name = Path(record.path), PurePosixPath(record.name).name
    holds_images = os.path.isdir(folder) and record.excluded != MASK_FOLDER and not is_junk(name)
    with suppress(OSError):  # one that cannot be read may hold some
        holds_images = holds_images and any(is_image(path.name) for path in folder.iterdir())
    if holds_images:
        return (
            "warning",
            "If its images belong to the set, read subfolders too: data.recursive = true, or --recursive.",
        )
    return "note", "Nothing, unless it was meant to be an image."


def too_few(case: Case) -> Iterator[Finding]:
    """Fewer images than a subject or a style needs; counted for each trigger of its own."""
    if not case.manifest.used:
        yield Finding("error", "", "there is no image to train on", "See what is said about each file.")
    for trigger, records in grouped(case.manifest.used, "trigger").items():
        of = f' of "{trigger}"' if trigger else ""
        if len(records) < _SUBJECT:
            needed = f"a subject needs {_SUBJECT} or more, a style {_STYLE} or more"
            advice = "Add different ones: other views, light and backgrounds."
            yield Finding("warning", "", f"{plural(len(records))}{of}; {needed}", advice)
        elif len(records) < _STYLE and not any(record.class_words for record in records):
            detail = f"{plural(len(records))}{of}: enough for a subject, few for a style"
            yield Finding("note", "", detail, f"For a style, use {_STYLE} or more, of different things.")

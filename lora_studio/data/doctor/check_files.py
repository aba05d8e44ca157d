"""Files that are not used, and why; files that get in each other's way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from lora_studio.data.doctor.finding import Finding, Severity
from lora_studio.data.doctor.look import Case
from lora_studio.data.images import is_caption, is_image, is_junk, is_mask, place
from lora_studio.data.manifest import Record
from lora_studio.data.scan import shared_stems
from lora_studio.data.scan.layouts import MASK_FOLDER, is_by_choice
from lora_studio.text import plural


def refused(case: Case) -> Iterator[Finding]:
    """What else would stop a training."""
    for fault in case.faults:
        yield Finding("error", "", fault, "Mend it; a training stops at it.")


def same_name(case: Case) -> Iterator[Finding]:
    """Images to which the same caption file would belong."""
    for first, *others in shared_stems(case.manifest.usable):
        for other in others:
            detail = f"{PurePosixPath(first.name).name} has the same name but for the ending"
            advice = "Rename or remove one of the two: a caption file could belong to either."
            yield Finding("error", other.name, detail, advice, other=first.name)


def unusable(case: Case) -> Iterator[Finding]:
    """Images that cannot be read, or that are too small, too long or empty to be used."""
    for record in _left_out(case):
        if _is_lost_image(record):
            advice = "Save it again as PNG or JPEG from its original, or remove it."
            yield Finding("warning", record.name, record.excluded, advice)


def orphan_caption(case: Case) -> Iterator[Finding]:
    """Caption files without an image."""
    lost = {place(record.name) for record in _left_out(case) if _is_lost_image(record)}
    for record in _left_out(case):
        if is_caption(record.name) and not is_by_choice(record.excluded) and place(record.name) not in lost:
            advice = "Give it the name of its image, or remove it."
            yield Finding("warning", record.name, record.excluded, advice)


def ignored(case: Case) -> Iterator[Finding]:
    """Everything else that is not used."""
    for record in _left_out(case):
        if _is_lost_image(record) or (is_caption(record.name) and not is_by_choice(record.excluded)):
            continue
        yield Finding(_weight(record), record.name, record.excluded, _what_to_do(record))


def read_note(case: Case) -> Iterator[Finding]:
    """How files were read that could be read in several ways."""
    for record in case.manifest.usable:
        if record.note:
            yield Finding("note", record.name, record.note, "Look whether it is shown as you mean it.")


def _left_out(case: Case) -> Iterator[Record]:
    """Excluded records, but for copies of images that are used: the checks of duplicates have those."""
    kept = {record.sha256 for record in case.manifest.usable}
    for record in case.manifest.records:
        if record.excluded and not (record.sha256 and record.sha256 in kept):
            yield record


def _is_lost_image(record: Record) -> bool:
    """Whether it looks like an image by its name, and was meant to be used."""
    name = PurePosixPath(record.name).name
    beside = is_junk(name) or is_mask(name) or is_by_choice(record.excluded) or _is_folder(record)
    return not beside and (is_image(name) or bool(record.width))


def _is_folder(record: Record) -> bool:
    return Path(record.path).is_dir()


def _weight(record: Record) -> Severity:
    """A folder with images in it, or a mask, was probably meant to be used."""
    if is_mask(record.name):
        return "warning"
    if not _is_folder(record) or record.excluded == MASK_FOLDER or is_junk(PurePosixPath(record.name).name):
        return "note"
    try:
        holds_images = any(is_image(path.name) for path in Path(record.path).iterdir())
    except OSError:
        return "warning"
    return "warning" if holds_images else "note"


def _what_to_do(record: Record) -> str:
    if is_mask(record.name):
        return "Give it the name of its image, or remove it."
    if _weight(record) == "warning":
        return "If its images belong to the set, read subfolders too (recursive = true)."
    return "Nothing, unless it was meant to be an image."


_SUBJECT = 5  # DreamBooth, arXiv 2208.12242, takes 3 to 5 of a subject
_STYLE = 10


def too_few(case: Case) -> Iterator[Finding]:
    """Fewer images than a subject or a style needs; counted for each trigger of its own."""
    if not case.manifest.used:
        yield Finding("error", "", "there is no image to train on", "See what is said about each file.")
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in case.manifest.used:
        groups[record.trigger].append(record)
    for trigger, records in groups.items():
        of = f' of "{trigger}"' if trigger else ""
        if len(records) < _SUBJECT:
            needed = f"a subject needs {_SUBJECT} or more, a style {_STYLE} or more"
            advice = "Add different ones: other views, light and backgrounds."
            yield Finding("warning", "", f"{plural(len(records))}{of}; {needed}", advice)
        elif len(records) < _STYLE and not any(record.class_words for record in records):
            detail = f"{plural(len(records))}{of}: enough for a subject, few for a style"
            yield Finding("note", "", detail, f"For a style, use {_STYLE} or more, of different things.")

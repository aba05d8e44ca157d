"""Files that are not used, and why; files that get in each other's way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from lora_studio.data.doctor.finding import Finding, Severity
from lora_studio.data.doctor.look import Case
from lora_studio.data.exclude import is_by_choice
from lora_studio.data.layouts import MASK_FOLDER
from lora_studio.data.manifest import Record
from lora_studio.data.names import is_caption, is_junk, is_mask, is_picture, place
from lora_studio.data.scan import shared_stems


def refused(case: Case) -> Iterator[Finding]:
    """What else would stop a training."""
    for fault in case.faults:
        yield Finding("error", "", fault, "Mend it; a training stops at it.")


def same_name(case: Case) -> Iterator[Finding]:
    """Pictures to which the same caption file would belong."""
    for first, *others in shared_stems(case.usable):
        for other in others:
            detail = f"{PurePosixPath(first.name).name} has the same name but for the ending"
            advice = "Rename or remove one of the two: a caption file could belong to either."
            yield Finding("error", other.name, detail, advice, other=first.name)


def unusable(case: Case) -> Iterator[Finding]:
    """Pictures that cannot be read, or that are too small, too long or empty to be used."""
    for record in _left_out(case):
        if _is_lost_picture(record):
            advice = "Save it again as PNG or JPEG from its original, or remove it."
            yield Finding("warning", record.name, record.excluded, advice)


def orphan_caption(case: Case) -> Iterator[Finding]:
    """Caption files without a picture."""
    lost = {place(record.name) for record in _left_out(case) if _is_lost_picture(record)}
    for record in _left_out(case):
        if is_caption(record.name) and not is_by_choice(record.excluded) and place(record.name) not in lost:
            advice = "Give it the name of its picture, or remove it."
            yield Finding("warning", record.name, record.excluded, advice)


def ignored(case: Case) -> Iterator[Finding]:
    """Everything else that is not used."""
    for record in _left_out(case):
        if _is_lost_picture(record) or (is_caption(record.name) and not is_by_choice(record.excluded)):
            continue
        yield Finding(_weight(record), record.name, record.excluded, _what_to_do(record))


def read_note(case: Case) -> Iterator[Finding]:
    """How files were read that could be read in several ways."""
    for record in case.usable:
        if record.note:
            yield Finding("note", record.name, record.note, "Look whether it is shown as you mean it.")


def _left_out(case: Case) -> Iterator[Record]:
    """Excluded records, but for copies of pictures that are used: the checks of duplicates have those."""
    kept = {record.sha256 for record in case.usable}
    for record in case.records:
        if record.excluded and not (record.sha256 and record.sha256 in kept):
            yield record


def _is_lost_picture(record: Record) -> bool:
    """Whether it looks like a picture by its name, and was meant to be used."""
    name = PurePosixPath(record.name).name
    beside = is_junk(name) or is_mask(name) or is_by_choice(record.excluded) or _is_folder(record)
    return not beside and (is_picture(name) or bool(record.width))


def _is_folder(record: Record) -> bool:
    return Path(record.path).is_dir()


def _weight(record: Record) -> Severity:
    """A folder with pictures in it, or a mask, was probably meant to be used."""
    if is_mask(record.name):
        return "warning"
    if not _is_folder(record) or record.excluded == MASK_FOLDER or is_junk(PurePosixPath(record.name).name):
        return "note"
    try:
        holds_pictures = any(is_picture(path.name) for path in Path(record.path).iterdir())
    except OSError:
        return "warning"
    return "warning" if holds_pictures else "note"


def _what_to_do(record: Record) -> str:
    if is_mask(record.name):
        return "Give it the name of its picture, or remove it."
    if _weight(record) == "warning":
        return "If its pictures belong to the set, read subfolders too (recursive = true)."
    return "Nothing, unless it was meant to be a picture."

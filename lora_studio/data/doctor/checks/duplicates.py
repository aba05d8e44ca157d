"""The same image more than once."""

from __future__ import annotations

from collections.abc import Iterator

from lora_studio.data.doctor.finding import Finding
from lora_studio.data.doctor.look import Case
from lora_studio.data.doctor.measure.likeness import Pair
from lora_studio.data.manifest import Record
from lora_studio.data.scan.exclude import is_by_choice


def exact_duplicate(case: Case) -> Iterator[Finding]:
    """Files with the bytes of another, which are left out."""
    for record, kept in _copies(case):
        if not _leaks(record, kept):
            detail = f"the same bytes as {kept.name}; only one of them is used"
            advice = "Remove one. To weigh an image more, use repeats."
            yield Finding("warning", record.name, detail, advice, other=kept.name)


def near_duplicate(case: Case) -> Iterator[Finding]:
    """Images that look the same: scaled, saved again, slightly cropped or mirrored."""
    for first, second, pair in case.alike:
        if first.role == second.role or "validation" not in (first.role, second.role):
            worse, better = sorted((first, second), key=lambda one: (one.width * one.height, one is first))
            advice = "Keep the better of the two; otherwise this image counts twice."
            detail = f"looks like {better.name}{_how(pair)}"
            yield Finding("warning", worse.name, detail, advice, other=better.name, leave_out=True)


def leakage(case: Case) -> Iterator[Finding]:
    """Images that are trained on and held out at once: what is measured on the latter is then too good."""
    advice = "Take it out of one of the two, or the measurement says nothing about new images."
    for record, kept in _copies(case):
        if _leaks(record, kept):
            detail = f"the same bytes as {kept.name}, which is held out; the copy is not trained on"
            yield Finding("warning", record.name, detail, advice, other=kept.name)
    for first, second, pair in case.alike:
        if first.role != second.role and "validation" in (first.role, second.role):
            held_out, other = (first, second) if first.role == "validation" else (second, first)
            detail = f"looks like {held_out.name}{_how(pair)}, which is held out"
            yield Finding("error", other.name, detail, advice, other=held_out.name, leave_out=True)


def _leaks(record: Record, kept: Record) -> bool:
    return kept.role == "validation" and record.role != "validation"


def _copies(case: Case) -> Iterator[tuple[Record, Record]]:
    """Excluded records with the usable one of the same bytes."""
    kept = {record.sha256: record for record in case.usable}
    for record in case.records:
        if record.excluded and record.sha256 and not is_by_choice(record.excluded) and record.sha256 in kept:
            yield record, kept[record.sha256]


def _how(pair: Pair) -> str:
    mirrored = " mirrored" if pair.mirrored else ""
    return f"{mirrored} ({pair.bits} of 63 bits of their perceptual hashes differ)"

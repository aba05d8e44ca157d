"""Whether there are enough pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from lora_studio.data.doctor.finding import Finding, number
from lora_studio.data.doctor.look import Case
from lora_studio.data.manifest import Record

_SUBJECT = 5  # DreamBooth, arXiv 2208.12242, takes 3 to 5 of a subject
_STYLE = 10


def too_few(case: Case) -> Iterator[Finding]:
    """Fewer pictures than a subject or a style needs; counted for each trigger of its own."""
    if not case.trained:
        yield Finding("error", "", "there is no picture to train on", "See what is said about each file.")
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in case.trained:
        groups[record.trigger].append(record)
    for trigger, records in groups.items():
        of = f' of "{trigger}"' if trigger else ""
        if len(records) < _SUBJECT:
            detail = (
                f"{number(len(records))}{of}; a subject needs {_SUBJECT} or more, a style {_STYLE} or more"
            )
            advice = "Add different ones: other views, light and backgrounds."
            yield Finding("warning", "", detail, advice)
        elif len(records) < _STYLE and not any(record.class_words for record in records):
            detail = f"{number(len(records))}{of}: enough for a subject, few for a style"
            yield Finding("note", "", detail, f"For a style, use {_STYLE} or more, of different things.")

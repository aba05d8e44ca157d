"""Sources -> a manifest, without stopping at what training stops at: the doctor reports that instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lora_studio.data.captioners import Captioner
from lora_studio.data.captions.files import find_captions
from lora_studio.data.manifest import Manifest, Record
from lora_studio.data.scan import survey
from lora_studio.data.sources import (
    Source,
    belonging,
    check_excludes,
    one_of_each,
    reading_of,
    source_labels,
)


def read_anyway(sources: Sequence[Source], captioner: Captioner) -> tuple[Manifest, list[str]]:
    """As `read_sources`, with "" as caption where there is none, and sentences about masks that do not fit.

    Raises DatasetError for a folder that cannot be read at all and for a list of captions that is none.
    """
    records: list[Record] = []
    faults: list[str] = []
    for source, label in zip(sources, source_labels(sources), strict=True):
        found = survey(source.folder, reading_of(source, label), repeats=source.repeats)
        captioned = _captioned(found.manifest, source, captioner)
        records += belonging(captioned, source, label)
        faults += [found.mask_fault] if found.mask_fault else []
    check_excludes(sources, records)
    return Manifest(tuple(one_of_each(records))), faults


def _captioned(manifest: Manifest, source: Source, captioner: Captioner) -> Manifest:
    """With the captions that training would read; the captioner is not asked where it would refuse."""
    used = manifest.used
    readable = [
        record
        for record, file in zip(used, find_captions(used), strict=True)
        if not file.fault and (file.text or record.caption or source.instance_prompt.strip())
    ]
    answers = captioner(Manifest(tuple(readable)), instance_prompt=source.instance_prompt)
    by_name = {record.name: record for record in answers.records}
    return Manifest(tuple(by_name.get(record.name, _silent(record)) for record in manifest.records))


def _silent(record: Record) -> Record:
    """A picture whose caption file is unreadable has none, even if its folder's name would do."""
    return record if record.excluded else replace(record, caption="", captioned_by="")

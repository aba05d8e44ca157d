"""Several folders of images, each with its role and weight -> one manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lora_studio.data.captioners import Captioner
from lora_studio.data.manifest import Manifest, Record
from lora_studio.data.scan.folder import OnImage, ScanOptions, scan
from lora_studio.errors import DatasetError

# Of equal files the one in the first role here is kept: what is held out must not be trained on.
_KEPT_FIRST = ("validation", "instance", "prior")


@dataclass(frozen=True)
class Source:
    """A folder of images and what they are to the run."""

    folder: Path
    reading: ScanOptions = ScanOptions()  # noqa: RUF009 (frozen)
    role: str = "instance"  # or prior, or validation
    repeats: int = 1
    weight: float = 1.0  # factor of their loss
    trigger: str = ""
    class_words: str = ""
    instance_prompt: str = ""  # caption of images that have none


def read_sources(
    sources: Sequence[Source], captioner: Captioner, *, on_image: OnImage | None = None
) -> Manifest:
    """One manifest of all sources, captioned; names begin with their folder's if there are several.

    `on_image` gets each image to train on, as `scan` says. Of equal files in different sources one is
    kept. Raises DatasetError that lists the faults of all sources, or if nothing is left to train on.
    """
    labels = source_labels(sources)
    records: list[Record] = []
    faults: list[str] = []
    for source, label in zip(sources, labels, strict=True):
        try:
            records += _read(source, label, captioner, on_image if source.role == "instance" else None)
        except DatasetError as fault:
            faults.append(str(fault))
    if faults:
        raise DatasetError("\n".join(faults))
    check_excludes(sources, records)
    manifest = Manifest(tuple(one_of_each(records)))
    if not manifest.used:
        raise DatasetError(
            "every image to train on is also in a source with the role validation; remove it from one of them."
        )
    return manifest


def _read(source: Source, label: str, captioner: Captioner, on_image: OnImage | None) -> list[Record]:
    found = scan(source.folder, reading_of(source, label), repeats=source.repeats, on_image=on_image)
    captioned = captioner(found, instance_prompt=source.instance_prompt)
    return belonging(captioned, source, label)


def reading_of(source: Source, label: str) -> ScanOptions:
    """How its folder is read when the names in it begin with `label` for people."""
    return replace(source.reading, exclude=source.reading.exclude.below(label))


def check_excludes(sources: Sequence[Source], records: Sequence[Record]) -> None:
    """Raise DatasetError if a list of files to leave out names one that is in none of the sources."""
    for exclude in dict.fromkeys(source.reading.exclude for source in sources):
        exclude.check(record.name for record in records)


def belonging(manifest: Manifest, source: Source, label: str) -> list[Record]:
    """The records with the source's label, role and words."""
    return [
        replace(
            record,
            name=label + record.name,
            role=source.role,
            weight=record.overrides.weight or source.weight,
            trigger=source.trigger,
            class_words=source.class_words,
        )
        for record in manifest.records
    ]


def source_labels(sources: Sequence[Source]) -> list[str]:
    """ "a/", "b/", "a (2)/" for folders called a, b and a; nothing for a single one."""
    if len(sources) == 1:
        return [""]
    seen: Counter[str] = Counter()
    labels = []
    for name in (source.folder.name for source in sources):
        seen[name] += 1
        labels.append(f"{name}/" if seen[name] == 1 else f"{name} ({seen[name]})/")
    return labels


def one_of_each(records: Sequence[Record]) -> list[Record]:
    """The records in their order; of equal usable files in several sources one stays used."""
    first: dict[str, Record] = {}
    for role in _KEPT_FIRST:
        for record in records:
            if record.role == role and not record.excluded:
                first.setdefault(record.sha256, record)
    return [_or_duplicate(record, first) for record in records]


def _or_duplicate(record: Record, first: dict[str, Record]) -> Record:
    kept = record if record.excluded else first[record.sha256]
    if kept is record:
        return record
    held_out = ", which is held out" if kept.role == "validation" else ""
    return replace(record, excluded=f"the same bytes as {kept.name}{held_out}")

"""A folder that nobody has written a recipe for -> a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lora_studio.data.buckets import assign
from lora_studio.data.captioners import CAPTIONERS, Captioner
from lora_studio.data.captions.files import find_captions
from lora_studio.data.doctor import examine
from lora_studio.data.doctor.clip_tokenizer import ClipTokenizer
from lora_studio.data.doctor.finding import DoctorReport
from lora_studio.data.manifest import Manifest, Record
from lora_studio.data.scan.folder import ScanOptions, survey
from lora_studio.data.sources import Source, belonging, check_excludes, one_of_each, reading_of, source_labels
from lora_studio.families.text_chunks import Tokenizer

_RESOLUTION, _STRIDE = 512, 64  # those of the most common base


@dataclass(frozen=True)
class DoctorOptions:
    """What a recipe would say."""

    base: str = ""  # "pocket", a folder, a file or a hub id; empty: bases of 512 pixels that read with CLIP
    resolution: int = 0  # pixels; 0: what the base was made for
    trigger: str = ""
    recursive: bool = False


@dataclass(frozen=True)
class _Facts:
    """What a base asks of images and captions."""

    resolution: int
    stride: int
    tokenizers: dict[str, Tokenizer]


def examine_folder(
    folder: Path,
    wishes: DoctorOptions = DoctorOptions(),
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[DoctorReport, Manifest]:
    """The report and what it is about. Raises DatasetError if there is nothing to look at."""
    facts = _facts(wishes.base)
    resolution = wishes.resolution or facts.resolution
    source = Source(folder, ScanOptions(recursive=wishes.recursive), trigger=wishes.trigger)
    manifest, faults = read_anyway([source], CAPTIONERS["sidecar"])
    manifest = assign(manifest, resolution=resolution, stride=facts.stride)
    report = examine(
        manifest,
        resolution=resolution,
        stride=facts.stride,
        tokenizers=facts.tokenizers,
        faults=faults,
        on_progress=on_progress,
    )
    return report, manifest


def _facts(base: str) -> _Facts:
    if not base:
        return _Facts(_RESOLUTION, _STRIDE, {"CLIP": ClipTokenizer()})
    from lora_studio.families.loading import load_base

    family = load_base(base, weights=False)
    return _Facts(family.native_side, family.stride, dict(family.tokenizers))


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
    """An image whose caption file is unreadable has none, even if its folder's name would do."""
    return record if record.excluded else replace(record, caption="", captioned_by="")

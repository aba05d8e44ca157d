"""Captions for a folder: only where they are wanted, written one by one, so that a stop loses nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from lora_studio.data.captioners import CaptionResult, CaptionWriter
from lora_studio.data.captions import (
    CaptionFile,
    Ledger,
    LedgerEntry,
    Ledgers,
    find_captions,
    read_caption_file,
    sha256,
)
from lora_studio.data.captions.find_replace import Backup, replace_caption
from lora_studio.data.manifest import FOLDER_NAME, Manifest, Record

BY_HAND = "by hand"
# Which captions may be replaced: none, those that a captioner wrote and were not edited since, or any.
Replace = Literal["nothing", "generated", "all"]


@dataclass(frozen=True)
class Captioned:
    """An image is done."""

    name: str
    done: int
    total: int
    before: str  # the caption it had; empty: none
    after: str  # the caption it has now; empty: none was written
    fault: str = ""  # why none was written


@dataclass
class CaptioningResult:
    """What became of every image of the folder."""

    written: int = 0
    kept: Counter[str] = field(default_factory=Counter)  # who wrote the captions that were left as they are
    done_before: int = 0  # the same captioner, settings and image as now
    faults: list[tuple[str, str]] = field(default_factory=list)  # (image, why it has no new caption)
    backup: Path | None = None  # the folder with what the replaced captions were


Job = tuple[Record, CaptionFile, Ledger]


def write_captions(
    manifest: Manifest,
    writer: CaptionWriter,
    *,
    folder: Path,
    replace: Replace = "nothing",
    dry_run: bool = False,
    on_image: Callable[[Captioned], None] = lambda captioned: None,
) -> CaptioningResult:
    """Write captions beside the used images that have none, or whose caption may be replaced.

    What is replaced is kept in a backup inside `folder`. Called again after a stop, it goes on where it was.
    Raises CaptionError if the captioner or the disk does not work; what was written until then stays.
    """
    writer.options.wording.check()
    outcome = CaptioningResult()
    jobs = _jobs(manifest.used, writer, replace, outcome)
    backup = Backup(folder)
    for start in range(0, len(jobs), writer.batch_size):
        batch = jobs[start : start + writer.batch_size]
        results = writer.describe([record for record, _, _ in batch])
        for done, (job, result) in enumerate(zip(batch, results, strict=True), start=start + 1):
            after, fault = _caption(job, result, writer, backup, dry_run=dry_run)
            record, file, _ = job
            outcome.faults += [(record.name, fault)] if fault else []
            outcome.written += not fault
            on_image(Captioned(record.name, done, len(jobs), file.text, after, fault))
        outcome.backup = backup.folder
    return outcome


def _jobs(
    records: Sequence[Record], writer: CaptionWriter, replace: Replace, outcome: CaptioningResult
) -> list[Job]:
    """The images that get a caption; what becomes of the others is counted in `outcome`."""
    ledgers = Ledgers()
    jobs = []
    for record, file in zip(records, find_captions(records), strict=True):
        author = ledgers.author(file.path, file.data) if file.text else None
        if file.fault:
            outcome.faults.append((record.name, f"{file.path.name} cannot be read ({file.fault})"))
        elif author and author.same_work(_entry(record, file.path, writer, b"")):
            outcome.done_before += 1
        elif file.text and replace != "all" and not (author and replace == "generated"):
            outcome.kept[author.author if author else BY_HAND] += 1
        # A list of captions may name the image; the folder's name, the last resort, is none.
        elif record.caption and record.captioned_by != FOLDER_NAME and not file.text and replace != "all":
            outcome.kept[BY_HAND] += 1
        else:
            jobs.append((record, file, ledgers[file.path.parent]))
    return jobs


def _caption(
    job: Job, result: CaptionResult, writer: CaptionWriter, backup: Backup, *, dry_run: bool
) -> tuple[str, str]:
    """Write one caption; returns it, or why there is none."""
    record, file, ledger = job
    if result.fault:
        return "", result.fault
    caption = writer.options.wording.apply(result.text)
    if not caption:
        return "", "nothing is left to say" if result.text.strip() else "the captioner said nothing"
    if read_caption_file(file.path) != file:  # somebody wrote it while the captioner was looking at images
        return "", f"{file.path.name} was changed meanwhile and is kept"
    if not dry_run:
        data = (caption + "\n").encode("utf-8")
        ledger.add(_entry(record, file.path, writer, data))
        replace_caption(file.path, data, before=file.data, backup=backup)
    return caption, ""


def _entry(record: Record, path: Path, writer: CaptionWriter, data: bytes) -> LedgerEntry:
    wording, now = writer.options.wording.to_json(), datetime.now(UTC).isoformat(timespec="seconds")
    hashes, image = (record.sha256, sha256(data)), Path(record.path).name
    return LedgerEntry(path.name, image, writer.name, writer.settings, wording, *hashes, now)

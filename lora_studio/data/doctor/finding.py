"""What the doctor says: findings, the bucket plan, and a list of what to leave out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from lora_studio.data.buckets import crop_loss
from lora_studio.data.manifest import Manifest, Record
from lora_studio.data.scan.layouts import is_by_choice
from lora_studio.errors import DatasetError, preview_names
from lora_studio.files import write_atomically
from lora_studio.text import in_words, plural, printable, shown

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
_IN_PLAN = {  # what the plan of a training says in its own lines
    *("exact_duplicate", "unusable", "orphan_caption", "ignored", "read_note"),
    *("trigger_missing", "caption_too_long"),
}
_IN_FULL = {"other_syntax"}  # where the advice matters as much as what was found


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about one file, or about all of them if `path` is empty."""

    severity: Severity  # error: stops or spoils the training; warning: likely harms it; note: good to know
    path: str  # the file's name in the manifest
    detail: str  # the evidence
    advice: str
    kind: str = ""  # the name of the check; filled in by whoever runs it
    other: str = ""  # the file that it is like, if there is one
    leave_out: bool = False  # whether the set may be better without this image

    @property
    def evidence(self) -> str:
        return f"{self.path}: {self.detail}" if self.path else self.detail

    def to_json(self) -> dict[str, str]:
        fields = ("kind", "severity", "path", "detail", "advice")
        return {name: printable(getattr(self, name)) for name in fields}


@dataclass(frozen=True)
class DoctorReport:
    """All findings, the worst first, and what would be trained on."""

    findings: tuple[Finding, ...]
    plan: dict[str, Any]  # see `bucket_plan`
    images: tuple[Record, ...] = ()  # usable and placed, as `plan` says in JSON

    def count(self, severity: Severity) -> int:
        return sum(finding.severity == severity for finding in self.findings)

    def groups(self) -> list[tuple[Finding, list[Finding]]]:
        """Findings of one kind and severity together, in their order: the first of them, and all."""
        grouped = groupby(self.findings, key=lambda finding: (finding.severity, finding.kind))
        return [(group[0], group) for group in (list(findings) for _, findings in grouped)]

    def plan_rows(self) -> list[tuple[str, str]]:
        """For the plan of a training, as (title, text): every error, most other kinds in a line each."""
        if not self.findings:
            return []
        counts = ((self.count(severity), severity) for severity in SEVERITIES)
        found = ", ".join(plural(count, severity) for count, severity in counts if count)
        rows = [("doctor", f"{found}; in full: doctor.json in the run folder, or lora-studio doctor")]
        kinds: dict[str, list[str]] = {}
        for finding in self.findings:
            if finding.severity == "error" or finding.kind in _IN_FULL:
                what = f"{in_words(finding.kind)}: {shown(finding.evidence)}"
                title = finding.severity.upper() if finding.severity == "error" else finding.severity
                rows.append((title, f"{what}. {finding.advice}"))
            elif finding.severity == "warning" and finding.kind not in _IN_PLAN:
                kinds.setdefault(finding.kind, []).append(shown(finding.path or finding.detail))
        return rows + [("", f"{in_words(kind)}: {preview_names(names)}") for kind, names in kinds.items()]

    def to_json(self) -> dict[str, Any]:
        """{"findings": [{"kind", "severity", "path", "detail", "advice"}, ...], "plan": {...}}.

        The plan is that of `bucket_plan` with every usable image, its bucket and crop as "images": `crop` is
        left, top, right, bottom in the image as resized to `resize`; `cropped_away` a share, 0 to 1.
        """
        plan = self.plan | {"images": [_image(record) for record in self.images]}
        return {"findings": [finding.to_json() for finding in self.findings], "plan": plan}


def worst_first(findings: Iterable[Finding], kinds: Sequence[str]) -> tuple[Finding, ...]:
    """By severity, then by kind in the order of `kinds`, then as they came."""
    order = {kind: place for place, kind in enumerate(kinds)}
    return tuple(sorted(findings, key=lambda one: (SEVERITIES.index(one.severity), order[one.kind])))


def bucket_plan(manifest: Manifest, resolution: int, stride: int) -> dict[str, Any]:
    """Buckets with their number of images, and the mean share that is cropped away, 0 to 1."""
    trained = manifest.used
    buckets = Counter(record.bucket.name for record in trained if record.bucket)
    plan: dict[str, Any] = {"resolution": resolution, "stride": stride}
    plan |= {"files": len(manifest.records), "used": len(trained)}
    return plan | {
        "roles": dict(Counter(record.role for record in manifest.usable)),
        "buckets": dict(sorted(buckets.items())),
        "cropped_away": sum(map(crop_loss, trained)) / len(trained) if trained else 0.0,
    }


def _image(record: Record) -> dict[str, Any]:
    return {
        "path": printable(record.name),
        **{name: getattr(record, name) for name in ("role", "repeats", "width", "height")},
        "bucket": record.bucket and record.bucket.name,
        "resize": record.resize and list(record.resize),
        "crop": record.crop and list(record.crop),
        "cropped_away": round(crop_loss(record), 4),
        "caption": printable(record.caption),
    }


def suggest(report: DoctorReport, records: Sequence[Record]) -> dict[str, str]:
    """Name -> why it may be left out, in the records' order; what is left out already stays so."""
    why: dict[str, list[str]] = {
        record.name: ["left out before"] for record in records if is_by_choice(record.excluded)
    }
    for finding in report.findings:
        if finding.leave_out:
            why.setdefault(finding.path, []).append(f"{in_words(finding.kind)}: {finding.detail}")
    return {record.name: "; ".join(why[record.name]) for record in records if record.name in why}


def write_suggestion(path: Path, report: DoctorReport, records: Sequence[Record]) -> int:
    """Write the list into a new file -> how many names it holds. Raises DatasetError if the file is there."""
    if path.exists():
        raise DatasetError(f"{path} is there already; remove it, or name another file for the list.")
    suggested = suggest(report, records)
    text = "# Images that may be better left out, by lora-studio doctor. Look at each, remove the lines of "
    text += 'those\n# to keep, and name this file in the recipe: exclude = "..." in [data].\n'
    text += "".join(f"\n# {shown(reason)}\n{name}\n" for name, reason in suggested.items())
    with refusals_of_the_disk(path):
        write_atomically(path, text.encode("utf-8", "surrogateescape"))
    return len(suggested)


@contextmanager
def refusals_of_the_disk(path: Path) -> Iterator[None]:
    """Raise DatasetError instead of OSError."""
    try:
        yield
    except OSError as error:
        raise DatasetError(f"{path} cannot be written: {error.strerror}; choose another place.") from None

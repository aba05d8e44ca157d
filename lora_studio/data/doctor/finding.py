"""What the doctor says: findings, and the plan they belong to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from lora_studio.data.buckets import crop_loss
from lora_studio.data.manifest import Record
from lora_studio.errors import preview_names
from lora_studio.text import in_words, plural, printable, shown

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
_IN_PLAN = {  # what the plan of a training says in its own lines
    *("exact_duplicate", "unusable", "orphan_caption", "ignored", "read_note"),
    *("trigger_missing", "caption_too_long"),
}


@dataclass(frozen=True)
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
        """The file, if it is about one, and the detail."""
        return f"{self.path}: {self.detail}" if self.path else self.detail

    def to_json(self) -> dict[str, str]:
        """The five fields that are promised."""
        fields = ("kind", "severity", "path", "detail", "advice")
        return {name: printable(getattr(self, name)) for name in fields}


@dataclass(frozen=True)
class DoctorReport:
    """All findings, the worst first, and what would be trained on."""

    findings: tuple[Finding, ...]
    plan: dict[str, Any]  # see plan.py

    def count(self, severity: Severity) -> int:
        """How many findings are so severe."""
        return sum(finding.severity == severity for finding in self.findings)

    def kinds(self) -> dict[str, int]:
        """Kind -> number of findings."""
        return dict(Counter(finding.kind for finding in self.findings))

    def groups(self) -> list[tuple[Finding, list[Finding]]]:
        """Findings of one kind and severity together, in their order: the first of them, and all."""
        grouped = groupby(self.findings, key=lambda finding: (finding.severity, finding.kind))
        return [(group[0], group) for group in (list(findings) for _, findings in grouped)]

    def plan_rows(self) -> list[tuple[str, str]]:
        """For the plan of a training, as (title, text): every error, other kinds in a line each."""
        if not self.findings:
            return []
        counts = ((self.count(severity), severity) for severity in SEVERITIES)
        found = ", ".join(plural(count, severity) for count, severity in counts if count)
        rows = [("doctor", f"{found}; in full: doctor.json in the run folder, or lora-studio doctor")]
        kinds: dict[str, list[str]] = {}
        for finding in self.findings:
            if finding.severity == "error":
                what = f"{in_words(finding.kind)}: {shown(finding.evidence)}"
                rows.append(("ERROR", f"{what}. {finding.advice}"))
            elif finding.severity == "warning" and finding.kind not in _IN_PLAN:
                kinds.setdefault(finding.kind, []).append(shown(finding.path or finding.detail))
        return rows + [("", f"{in_words(kind)}: {preview_names(names)}") for kind, names in kinds.items()]

    def to_json(self) -> dict[str, Any]:
        """{"findings": [{"kind", "severity", "path", "detail", "advice"}, ...], "plan": {...}}."""
        return {"findings": [finding.to_json() for finding in self.findings], "plan": self.plan}


def worst_first(findings: Iterable[Finding], kinds: Sequence[str]) -> tuple[Finding, ...]:
    """By severity, then by kind in the order of `kinds`, then as they came."""
    return tuple(
        sorted(findings, key=lambda one: (SEVERITIES.index(one.severity), list(kinds).index(one.kind)))
    )


def bucket_plan(records: Sequence[Record], *, resolution: int, stride: int) -> dict[str, Any]:
    """Buckets with their number of images, and every usable image with its bucket and crop.

    `crop` is left, top, right, bottom in the image as resized to `resize`; `cropped_away` a share, 0 to 1.
    """
    usable = [record for record in records if not record.excluded]
    trained = [record for record in usable if record.role == "instance"]
    buckets = Counter(record.bucket.name for record in trained if record.bucket)
    return {
        "resolution": resolution,
        "stride": stride,
        "files": len(records),
        "used": len(trained),
        "roles": dict(Counter(record.role for record in usable)),
        "buckets": dict(sorted(buckets.items())),
        "cropped_away": sum(map(crop_loss, trained)) / len(trained) if trained else 0.0,
        "images": [_image(record) for record in usable],
    }


def _image(record: Record) -> dict[str, Any]:
    return {
        "path": printable(record.name),
        "role": record.role,
        "repeats": record.repeats,
        "width": record.width,
        "height": record.height,
        "bucket": record.bucket and record.bucket.name,
        "resize": record.resize and list(record.resize),
        "crop": record.crop and list(record.crop),
        "cropped_away": round(crop_loss(record), 4),
        "caption": printable(record.caption),
    }

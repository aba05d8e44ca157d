"""What the verb `doctor` shows, and what a training's plan says of the doctor's findings."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from lora_studio.data.doctor.finding import SEVERITIES, DoctorReport, Finding, in_words, number, shown
from lora_studio.errors import preview_names

_COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_MOST = 10  # findings of one kind in the terminal

# What the plan of a training says anyway, in its own lines.
_IN_PLAN = {
    *("exact_duplicate", "unusable", "orphan_caption", "ignored", "read_note"),
    *("trigger_missing", "caption_too_long"),
}


def print_findings(report: DoctorReport, console: Console, *, title: str) -> None:
    """Findings by kind, the worst first, and the bucket plan."""
    plan = report.plan
    console.print(
        Text(f"{shown(title)}: {number(plan['used'])} to train on, {_counts(report)}"), soft_wrap=True
    )
    for first, findings in report.groups():
        head = Text(f"\n{first.severity}", style=_COLOURS[first.severity])
        console.print(head.append(f"  {in_words(first.kind)} ({len(findings)})", style="bold not dim"))
        _print_group(findings, console)
    for line in plan["triggers"]:
        console.print(Text(f"\n{shown(line)}"), soft_wrap=True)
    buckets = ", ".join(f"{name}: {count}" for name, count in plan["buckets"].items())
    if buckets:
        console.print(
            Text("\nbuckets", style="bold").append(f"  {buckets}", style="not bold"), soft_wrap=True
        )
        console.print(f"  {plan['cropped_away']:.1%} of an image is cropped away on average")


def finding_lines(findings: Sequence[Finding]) -> list[tuple[str, str]]:
    """For the plan of a training, as (title, text): every error, other kinds in a line each."""
    if not findings:
        return []
    counts = ", ".join(
        number(count, severity)
        for severity in SEVERITIES
        if (count := sum(finding.severity == severity for finding in findings))
    )
    lines = [("doctor", f"{counts}; in full: doctor.json in the run folder, or lora-studio doctor")]
    kinds: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.severity == "error":
            lines.append(("ERROR", f"{in_words(finding.kind)}: {_named(finding)}. {finding.advice}"))
        elif finding.severity == "warning" and finding.kind not in _IN_PLAN:
            kinds.setdefault(finding.kind, []).append(finding)
    for kind, group in kinds.items():
        names = preview_names([shown(finding.path or finding.detail) for finding in group])
        lines.append(("", f"{in_words(kind)}: {names}"))
    return lines


def _print_group(findings: Sequence[Finding], console: Console) -> None:
    """Each with its evidence; advice once if it is the same for all."""
    shared = all(finding.advice == findings[0].advice for finding in findings)
    for finding in findings[:_MOST]:
        advice = "" if shared else f"  {finding.advice}"
        console.print(Text(f"  {_named(finding)}").append(advice, style="dim"), soft_wrap=True)
    if (more := len(findings) - _MOST) > 0:
        console.print(f"  and {more} more; --json and --html show all")
    if shared:
        console.print(Text(f"  {findings[0].advice}", style="dim"), soft_wrap=True)


def _named(finding: Finding) -> str:
    return shown(f"{finding.path}: {finding.detail}" if finding.path else finding.detail)


def _counts(report: DoctorReport) -> str:
    return ", ".join(number(report.count(severity), severity) for severity in SEVERITIES)

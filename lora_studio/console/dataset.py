"""What the verbs on a folder of images show: `doctor`, `buckets`, `caption` and `captions`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from rich.table import Table
from rich.text import Text

from lora_studio.console import Bars, Screen
from lora_studio.data.buckets.report import AspectRow, BucketPlan
from lora_studio.data.captioners.write import BY_HAND, Captioned, CaptioningResult
from lora_studio.data.captions.find_replace import CaptionChange
from lora_studio.data.captions.statistics import Statistics
from lora_studio.data.doctor.finding import SEVERITIES, DoctorReport, Finding
from lora_studio.data.images import is_caption, is_junk
from lora_studio.data.manifest import Manifest
from lora_studio.errors import preview_names
from lora_studio.text import in_words, plural, shown

_COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_MOST = 10  # findings of one kind in the terminal


def print_findings(report: DoctorReport, screen: Screen, *, title: str) -> None:
    """Findings by kind, the worst first, and the bucket plan."""
    plan = report.plan
    counts = ", ".join(plural(report.count(severity), severity) for severity in SEVERITIES)
    screen.say(f"{shown(title)}: {plural(plan['used'])} to train on, {counts}")
    for first, findings in report.groups():
        head = Text(f"\n{first.severity}", style=_COLOURS[first.severity])
        screen.say(head.append(f"  {in_words(first.kind)} ({len(findings)})", style="bold not dim"))
        _print_group(findings, screen)
    for line in [*plan["triggers"], *(f"base: {note}" for note in plan["base_notes"])]:
        screen.say()
        screen.say(shown(line))
    buckets = ", ".join(f"{name}: {count}" for name, count in plan["buckets"].items())
    if buckets:
        screen.say(Text("\nbuckets", style="bold").append(f"  {buckets}", style="not bold"))
        screen.say(f"  {plan['cropped_away']:.1%} of an image is cropped away on average")


def _print_group(findings: Sequence[Finding], screen: Screen) -> None:
    """Advice is printed once if it is the same for all."""
    shared = all(finding.advice == findings[0].advice for finding in findings)
    for finding in findings[:_MOST]:
        advice = "" if shared else f"  {finding.advice}"
        screen.say(Text(f"  {shown(finding.evidence)}").append(advice, style="dim"))
    if (more := len(findings) - _MOST) > 0:
        screen.say(f"  and {more} more; --json and --html show all")
    if shared:
        screen.say(f"  {findings[0].advice}", "dim")


def print_aspects(rows: Sequence[AspectRow], screen: Screen, *, resolution: int, stride: int) -> None:
    """A row for each shape that cameras and screens have, and what is lost on average."""
    table = Table(title=f"buckets at {resolution}, stride {stride}", title_justify="left")
    for name in ("shape", "bucket", "cropped", "area"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(row.aspect, row.bucket.name, f"{row.cropped:.1%}", f"{row.area:.0%}")
    screen.print(table)
    usual = [row for row in rows if row.aspect not in ("21:9", "9:21")]
    for words, some_rows in ((f"all {len(rows)}", rows), (f"the {len(usual)} without 21:9", usual)):
        cropped, area = fmean(row.cropped for row in some_rows), fmean(row.area for row in some_rows)
        screen.say(f"mean of {words}: {cropped:.2%} cropped, {area:.1%} of the area asked for")


def print_bucket_plan(plan: BucketPlan, excluded: Sequence[tuple[str, str]], screen: Screen) -> None:
    left_out = [("", f"excluded: {name} ({reason})") for name, reason in excluded]
    used = ("images", f"{plan.images} used, {len(excluded)} excluded")
    screen.print_rows([used, *left_out, *plan.rows()])


class CaptionScreen(Bars):
    """A progress bar, and above it every caption with the one that it replaces."""

    def __init__(self, screen: Screen, author: str) -> None:
        super().__init__(screen)
        self.screen, self.author = screen, author

    def __call__(self, captioned: Captioned) -> None:
        self.show(self.author, captioned.done, captioned.total)
        if not captioned.fault:
            _print_change(captioned.name, captioned.before, captioned.after, self.screen)


def _print_change(name: str, before: str, after: str, screen: Screen) -> None:
    if not before:
        screen.say(f"{name}: {after}")
        return
    screen.say(name)
    screen.say(f"  - {before}", "red")
    screen.say(f"  + {after}", "green")


def print_outcome(outcome: CaptioningResult, manifest: Manifest, screen: Screen, *, dry_run: bool) -> None:
    """How many captions were written and kept, and every image that still has none."""
    screen.say(f"{plural(outcome.written, 'caption')} {'would be ' if dry_run else ''}written")
    if outcome.done_before:
        were = "was" if outcome.done_before == 1 else "were"
        screen.say(f"{outcome.done_before} {were} written before, with the same settings")
    for author, count in sorted(outcome.kept.items()):
        how = "--overwrite" if author == BY_HAND else "--redo"
        are = "is kept; {} replaces it" if count == 1 else "are kept; {} replaces them"
        screen.say(f"{plural(count, 'caption')} written {_author(author)} {are.format(how)}")
    for name, reason in outcome.faults:
        screen.say(f"no caption for {name}: {reason}")
    others = [one for one in manifest.excluded if not is_junk(one.name) and not is_caption(one.name)]
    if left_out := [f"{record.name} ({record.excluded})" for record in others]:
        screen.say(f"not looked at: {preview_names(left_out)}")
    if outcome.backup:
        screen.say(f"what was replaced is kept in {outcome.backup}")


def print_statistics(statistics: Statistics, screen: Screen, *, trigger: str) -> None:
    """Who wrote the captions, which are missing or alike, their words, tags and lengths."""
    by = ", ".join(f"{count} {_author(who)}" for who, count in statistics.written_by.items())
    screen.say(f"{statistics.captioned} of {statistics.images} images have a caption: {by or 'none'}")
    if statistics.several_lines:
        files = plural(statistics.several_lines, "caption file")
        screen.say(f"{files} with several captions, one a line")
    if statistics.without:
        screen.say(f"without a caption: {preview_names(statistics.without, limit=10)}")
        screen.say("`lora-studio caption` writes those that are missing")
    for name, reason in statistics.unreadable:
        screen.say(f"{name} cannot be read: {reason}")
    if statistics.not_read:
        screen.say(f"not read, though they say otherwise: {preview_names(statistics.not_read, limit=10)}")
    for count in statistics.identical:
        screen.say(f'{count.captions} images have the caption "{count.what}"')
    if (missing := statistics.without_trigger) is not None:
        screen.say(f'"{trigger}" is in {statistics.captioned - len(missing)} of {statistics.captioned}')
        if missing:
            screen.say(f"without it: {preview_names(missing, limit=10)}")
    for title, counts in (("words", statistics.words), ("tags", statistics.tags)):
        if counts:
            screen.say(f"{title}: " + ", ".join(f"{count.what} {count.captions}" for count in counts))
    for lengths in statistics.lengths:
        spread = f"{lengths.shortest} to {lengths.longest}, half of the captions {lengths.middle:g} or fewer"
        screen.say(f"tokens ({lengths.tokenizer}, {lengths.window} fit): {spread}")
        for cut in lengths.cut:
            screen.say(str(cut))


def _author(author: str) -> str:
    return author if author == BY_HAND else f"by {author}"


def print_found(changes: Sequence[CaptionChange], screen: Screen) -> None:
    """The captions that hold the words of --find."""
    for change in changes:
        screen.say(f"{change.name}: {change.file.text}")
    screen.say(f"found in {plural(len(changes), 'caption')}")


def print_changes(
    changes: Sequence[CaptionChange], screen: Screen, *, written: bool, backup: Path | None
) -> None:
    """Every caption before and after, and whether it was written."""
    good = [change for change in changes if not change.fault]
    for change in good:
        _print_change(change.name, change.file.text, change.after, screen)
    for change in changes:
        if change.fault:
            screen.say(f"{change.name} stays: {change.fault}")
    how = "changed" if written else f"would change{'; --write writes them' if good else ''}"
    screen.say(f"{plural(len(good), 'caption')} {how}")
    if backup:
        screen.say(f"what they were is kept in {backup}")

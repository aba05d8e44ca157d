"""What the verbs `caption` and `captions` show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from lora_studio.data.captioners.write import BY_HAND, Captioned, CaptioningResult
from lora_studio.data.captions.replace import CaptionChange
from lora_studio.data.captions.statistics import Lengths, Statistics
from lora_studio.data.images.names import is_caption, is_junk
from lora_studio.data.manifest import Manifest
from lora_studio.errors import preview_names


class CaptionScreen:
    """A progress bar, and above it every caption with the one that it replaces."""

    def __init__(self, console: Console, author: str) -> None:
        self.author = author
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self.task: TaskID | None = None

    def __enter__(self) -> CaptionScreen:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def __call__(self, captioned: Captioned) -> None:
        """Show one image's caption."""
        if self.task is None:
            self.task = self.bar.add_task(self.author, total=captioned.total)
        self.bar.update(self.task, completed=captioned.done, total=captioned.total)
        if not captioned.fault:
            print_change(captioned.name, captioned.before, captioned.after, self.bar.console)


def print_change(name: str, before: str, after: str, console: Console) -> None:
    """The file's name, the old caption and the new one; for a new one the name and the caption."""
    if not before:
        console.print(Text(f"{name}: {after}"), soft_wrap=True)
        return
    console.print(Text(name), soft_wrap=True)
    console.print(Text(f"  - {before}", style="red"), soft_wrap=True)
    console.print(Text(f"  + {after}", style="green"), soft_wrap=True)


def print_outcome(outcome: CaptioningResult, manifest: Manifest, console: Console, *, dry_run: bool) -> None:
    """How many captions were written and kept, and every image that still has none."""
    lines = [f"{outcome.written} captions {'would be ' if dry_run else ''}written"]
    if outcome.done_before:
        lines.append(f"{outcome.done_before} were written before, with the same settings")
    for author, count in sorted(outcome.kept.items()):
        by_hand = author == BY_HAND
        who, how = ("by hand", "--overwrite") if by_hand else (f"by {author}", "--redo")
        lines.append(f"{count} captions written {who} are kept; {how} replaces them")
    lines += [f"no caption for {name}: {reason}" for name, reason in outcome.faults]
    if left_out := [
        f"{record.name} ({record.excluded})"
        for record in manifest.excluded
        if not is_junk(record.name) and not is_caption(record.name)
    ]:
        lines.append(f"not looked at: {preview_names(left_out)}")
    if outcome.backup:
        lines.append(f"what was replaced is kept in {outcome.backup}")
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def print_statistics(statistics: Statistics, console: Console, *, trigger: str) -> None:
    """The statistics for people."""
    by = ", ".join(f"{count} {_author(who)}" for who, count in statistics.written_by.items())
    lines = [f"{statistics.captioned} of {statistics.images} images have a caption: {by or 'none'}"]
    if statistics.several_lines:
        lines.append(f"{statistics.several_lines} caption files hold several captions, one a line")
    if statistics.without:
        lines.append(f"without a caption: {preview_names(statistics.without, limit=10)}")
    lines += [f"{name} cannot be read: {reason}" for name, reason in statistics.unreadable]
    lines += [f'{count.captions} images have the caption "{count.what}"' for count in statistics.identical]
    if statistics.without_trigger is not None:
        missing = statistics.without_trigger
        lines.append(f'"{trigger}" stands in {statistics.captioned - len(missing)} of {statistics.captioned}')
        lines += [f"without it: {preview_names(missing, limit=10)}"] if missing else []
    for title, counts in (("words", statistics.words), ("tags", statistics.tags)):
        if counts:
            lines.append(f"{title}: " + ", ".join(f"{count.what} {count.captions}" for count in counts))
    for lengths in statistics.lengths:
        lines += _length_lines(lengths)
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def print_found(changes: Sequence[CaptionChange], console: Console) -> None:
    """The captions that hold what was sought."""
    for change in changes:
        console.print(Text(f"{change.name}: {change.before}"), soft_wrap=True)
    console.print(f"found in {len(changes)} captions")


def print_changes(
    changes: Sequence[CaptionChange], console: Console, *, written: bool, backup: Path | None
) -> None:
    """Every caption before and after, and whether it was written."""
    good = [change for change in changes if not change.fault]
    for change in good:
        print_change(change.name, change.before, change.after, console)
    for change in changes:
        if change.fault:
            console.print(Text(f"{change.name} stays: {change.fault}"), soft_wrap=True)
    if written:
        console.print(f"{len(good)} captions changed")
    else:
        console.print(f"{len(good)} captions would change{'; --write writes them' if good else ''}")
    if backup:
        console.print(Text(f"what they were is kept in {backup}"), soft_wrap=True)


def _author(author: str) -> str:
    return author if author == BY_HAND else f"by {author}"


def _length_lines(lengths: Lengths) -> list[str]:
    """Tokens of one tokenizer, and every caption that it cuts."""
    shown = f"{lengths.shortest} to {lengths.longest}, half of the captions {lengths.middle:g} or fewer"
    lines = [f"tokens ({lengths.tokenizer}, {lengths.window} fit): {shown}"]
    return lines + [str(cut) for cut in lengths.cut]

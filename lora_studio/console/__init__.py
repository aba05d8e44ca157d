"""What the terminal shows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from rich.cells import cell_len
from rich.console import Console, ConsoleDimensions, ConsoleOptions, JustifyMethod, RenderableType
from rich.highlighter import JSONHighlighter
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from lora_studio.console.terminal import guard_redirected
from lora_studio.text import Rows, duration, file_size, harmless, harmless_json, plural
from lora_studio.training import events

if TYPE_CHECKING:
    from lora_studio.training.finish import Finished
    from lora_studio.training.planning import RunPlan
    from lora_studio.training.planning.for_card import CardPlan


LEAST_WIDTH, UNKNOWN_WIDTH = 20, 80
_UNBROKEN = re.compile(r"[^\s`]*`[^`]*`\S*|lora-studio \S.*|\S+")  # commands are for copying


def folded(text: Text, width: int, *, indent: int = 2) -> Text:
    """Each line broken at spaces to `width` cells, further ones indented; commands stay whole."""
    return Text("\n").join(
        part for line in text.split(allow_blank=True) for part in _fold(line, width, indent)
    )


def _fold(line: Text, width: int, indent: int) -> list[Text]:
    plain, begin, room, starts = line.plain, 0, width, list[int]()
    for unit in _UNBROKEN.finditer(plain):
        is_long = cell_len(plain[begin : unit.end()]) > room
        if is_long and unit.start() > indent and plain[begin : unit.start()].strip():
            begin, room = unit.start(), width - indent
            starts.append(begin)
    first, *others = line.divide(starts)
    lines = [first, *(Text(" " * indent).append_text(other) for other in others)]
    for one in lines[:-1]:
        one.rstrip()
    return lines


class Screen(Console):
    """Prints text as it is: names of files and words from them are neither markup nor emoji.

    The one edge to the terminal: what steers it is spelled out here, so that no verb has to think of that.
    """

    def __init__(self, *, stderr: bool = False, file: TextIO | None = None, width: int | None = None) -> None:
        super().__init__(stderr=stderr, file=file, width=width, highlight=False, markup=False, emoji=False)

    @property
    def size(self) -> ConsoleDimensions:
        """In cells; a width below `LEAST_WIDTH` shows nothing, and COLUMNS=0 says that none is known."""
        width, height = super().size
        return ConsoleDimensions(max(width, LEAST_WIDTH) if width else UNKNOWN_WIDTH, height)

    @size.setter
    def size(self, new: tuple[int, int]) -> None:
        self._width, self._height = new

    def say(self, text: str | Text = "", style: str = "", *, indent: int = 2) -> None:
        """A line of any length: in a terminal broken between words, in a file or a pipe whole.

        Further lines are indented: one at the margin is always ours, and never what a name has behind "\\n".
        """
        if isinstance(text, str):
            text = Text(re.sub(r"\n(?=\S)", "\n  ", harmless(text)), style)
        if self.is_terminal:
            text = folded(text, self.width, indent=indent)
        self.print(text, soft_wrap=True)

    def say_json(self, data: object) -> None:
        self.print(JSONHighlighter()(Text(harmless_json(data))), soft_wrap=True)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Tables, bars and everything else pass here; rich's own movements of the cursor stay."""
        for part in super().render(renderable, options):
            yield part if part.control else Segment(harmless(part.text), part.style)

    def say_rows(self, rows: Rows, *, style: str = "") -> None:
        """Lines, each behind its title."""
        for title, text in rows:
            self.say(f"{title:<12} {text}", style, indent=13)

    def print_rows(self, rows: Rows, *, heading: str = "") -> None:
        """Titles and texts side by side; long texts are broken within their column."""
        if heading:
            self.say(heading, "italic")
        table = Table(show_header=False, box=None, pad_edge=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for title, text in rows:
            table.add_row(Text(harmless(title)), Text(harmless(text)))
        self.print(table)


console = Screen()
errors = Screen(stderr=True)  # mistakes, and progress where the output itself may be piped


def columns(titles: Sequence[str], *, right: Sequence[str] = (), whole: Sequence[str] = ()) -> Table:
    """A table without lines; those in `right` are flush right, those in `whole` never broken."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in titles:
        side: JustifyMethod = "right" if title in right else "left"
        table.add_column(title, justify=side, overflow="fold", no_wrap=title in whole)
    return table


class Bars(Progress):
    """A progress bar for each kind of work, which appears when the work begins."""

    def __init__(self, screen: Console, *, transient: bool = False) -> None:
        name = TextColumn("{task.description}", markup=False)
        facts = TextColumn("{task.fields[facts]}", markup=False)
        parts = name, BarColumn(), MofNCompleteColumn(), facts, TimeRemainingColumn()
        super().__init__(*parts, console=screen, transient=transient)
        self._bars: dict[str, TaskID] = {}

    def start(self) -> None:
        super().start()
        guard_redirected()

    def show(self, what: str, done: int, total: int, facts: str = "") -> None:
        if what not in self._bars:
            self._bars[what] = self.add_task(what, total=total, completed=done - 1, facts="")
        self.update(self._bars[what], completed=done, total=total, facts=facts)


def print_plan(plan: events.TrainingPlan, screen: Screen) -> None:
    screen.print_rows(plan.rows, heading=f"{plan.name}: what will be trained")


def print_needs(plan: RunPlan, screen: Screen) -> None:
    screen.say()
    screen.print_rows(plan.rows, heading="what it takes")


def print_card_plan(plan: CardPlan, screen: Screen) -> None:
    card = f"{plan.card.name} ({plan.card.memory_gib:g} GiB)"
    screen.print_rows(plan.rows, heading=f"{plan.name} on {card} in {plan.precision}, simulated")


def print_finished(result: Finished, screen: Screen) -> None:
    """What a run made and where, what was checked of it, and what it took."""
    checks, summary = result.report.checks, result.summary
    rows = []
    if result.lora_file:
        made = "whole base" if result.lora_file.is_dir() else "LoRA file"
        rows.append((made, f"{result.lora_file}  ({file_size(summary['file_bytes'])})"))
    rows += [("embedding", f"{path}, the word {word!r}") for word, path in result.embeddings.items()]
    rows.append(("verified", _verified(checks)))
    if (previews := result.folder / "previews").is_dir():
        rows.append(("images", str(previews)))
    rows.append(("loss", str(result.folder / "loss.png")))
    if measured := summary["validation"]:
        best = f"{measured['relative_best']:.1%} at step {measured['best_step']}, whose checkpoint is kept"
        text = f"{measured['relative_last']:.1%} of the base's loss; the lowest was {best}"
        rows.append(("validation", text))
    if skipped := summary["steps_skipped"]:
        rows.append(("warning", f"{plural(skipped, 'step')} not finite, and skipped"))
    rows.append(("time", f"{duration(summary['seconds']['training'])} for the steps"))
    screen.say()
    screen.say_rows(rows)


def _verified(checks: dict[str, Any]) -> str:
    """What was looked at in a LoRA file and embeddings, or in the folder of a whole base."""
    if "tensors_trained" in checks:
        trained = f"{checks['tensors_trained']} of {checks['tensors']} tensors were trained"
        probe = f"through diffusers the probe differs by {checks['probe_difference']:.2%}"
        return f"{trained}, and all are as they should be; {probe}"
    mapped = f"{checks['keys_mapped']} layers map to the base; " if "keys_mapped" in checks else ""
    share = checks["probe_difference_share"]
    return f"{mapped}through diffusers the probe differs by {share:.2%} of the adapter's effect"

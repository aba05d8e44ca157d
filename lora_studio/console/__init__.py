"""What the terminal shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO

from rich.console import Console, JustifyMethod
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from lora_studio.text import Rows


class Screen(Console):
    """Prints text as it is: names of files and words from them are neither markup nor emoji."""

    def __init__(
        self, *, stderr: bool = False, file: IO[str] | None = None, width: int | None = None
    ) -> None:
        super().__init__(stderr=stderr, file=file, width=width, highlight=False, markup=False, emoji=False)

    def say(self, text: str | Text = "", style: str = "") -> None:
        """A line of any length, which is not broken, so that it can be copied whole."""
        self.print(Text(text, style) if isinstance(text, str) else text, soft_wrap=True)

    def say_rows(self, rows: Rows, *, style: str = "") -> None:
        """Lines, each behind its title."""
        for title, text in rows:
            self.say(f"{title:<12} {text}", style)

    def print_rows(self, rows: Rows, *, heading: str = "") -> None:
        """Titles and texts side by side; long texts are broken within their column."""
        if heading:
            self.say(heading, "italic")
        table = Table(show_header=False, box=None, pad_edge=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for title, text in rows:
            table.add_row(Text(title), Text(text))
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

    def show(self, what: str, done: int, total: int, facts: str = "") -> None:
        if what not in self._bars:
            self._bars[what] = self.add_task(what, total=total, completed=done - 1, facts="")
        self.update(self._bars[what], completed=done, total=total, facts=facts)

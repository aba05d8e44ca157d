"""How UIs load a file, for people: a table of verdicts, and the report of `verify`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lora_studio.data.doctor.finding import shown

if TYPE_CHECKING:
    from lora_studio.export.uis import Verdict
    from lora_studio.export.verify import Report

_COLOURS = {"completely": "green", "partly": "yellow", "not at all": "bold red", "not known": "dim"}


def print_verdicts(verdicts: Sequence[Verdict], console: Console) -> None:
    """UI, how much of the file it loads, and why."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("UI", "loads", "why"):
        table.add_column(title, overflow="fold", no_wrap=title != "why")
    for one in verdicts:
        reasons = [shown(f"{reason.what}: {reason.consequence}") for reason in one.reasons]
        table.add_row(one.ui, Text(one.loads, style=_COLOURS[one.loads]), Text("\n".join(reasons)))
    console.print(table)


def print_report(report: Report, console: Console) -> None:
    """A verify report."""
    console.print(f"{shown(report.file)}: {'whole' if report.whole else 'FAULTY'}", markup=False)
    for title, lines in (("fault", report.faults), ("note", report.notes)):
        for line in lines:
            console.print(f"  {title}: {shown(line)}", markup=False, soft_wrap=True)
    for name, value in report.checks.items():
        words = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        console.print(f"  {name.replace('_', ' ')}: {shown(words)}", markup=False, soft_wrap=True)
    if report.uis:
        print_verdicts(report.uis, console)

"""The queue as the terminal shows it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from lora_studio.console import Screen
from lora_studio.jobs import last_lines
from lora_studio.text import command_of, duration, shown

if TYPE_CHECKING:
    from lora_studio.jobs import Job

_LAST_LINES = 12
_LAST_BYTES = 20_000


def print_jobs(jobs: Sequence[Job], screen: Screen) -> None:
    """A row a job."""
    if not jobs:
        screen.say(f"no jobs; add one with: {command_of('queue', 'add')} RECIPE")
        return
    table = Table(box=None, pad_edge=False)
    for title, justify in (("job", "right"), ("state", "left"), ("device", "left"), ("what", "left")):
        table.add_column(title, justify="right" if justify == "right" else "left")
    for job in jobs:
        what = job.run or " ".join(job.arguments)
        detail = f"{shown(what)}{_because(job)}"
        table.add_row(str(job.id), job.state, job.device or "-", detail)
    screen.print(table)


def _because(job: Job) -> str:
    if job.state == "queued" and job.after is not None:
        return f"; behind job {job.after}"
    return f"; {shown(job.reason, limit=300)}" if job.reason else ""


def print_job(job: Job, log: Path, screen: Screen) -> None:
    """All about one, with the end of its log."""
    seen = f", last seen {duration(max(0.0, time.time() - job.heartbeat))} ago" if job.heartbeat else ""
    rows = [
        ("state", f"{job.state}{f': {job.reason}' if job.reason else ''}"),
        ("command", command_of(*job.arguments)),
        ("folder", job.folder),
        ("behind", f"job {job.after}" if job.after is not None else ""),
        ("worker", f"{job.worker} on {job.device}{seen}" if job.worker else ""),
        ("tries", str(job.tries)),
        ("log", str(log) if log.is_file() else ""),
    ]
    screen.say_rows([row for row in rows if row[1]])
    for line in last_lines(log, _LAST_BYTES)[-_LAST_LINES:]:
        screen.say(f"  {line}")


def change_in_words(job: Job) -> str:
    """A line for what has just happened to a job."""
    where = f" on {job.device}" if job.state == "running" else ""
    reason = f": {job.reason}" if job.reason else ""
    return f"{time.strftime('%H:%M:%S')} job {job.id} {job.state}{where}{reason}"

"""The queue as the terminal shows it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_studio.console import Screen, columns
from lora_studio.jobs import MAY_RESUME, State, last_lines
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
    table = columns(("job", "state", "device", "what"), right=("job",), whole=("job", "state", "device"))
    states = {job.id: job.state for job in jobs}
    for job in jobs:
        what = job.run or shlex.join(job.arguments)
        table.add_row(str(job.id), job.state, job.device or "-", f"{shown(what)}{_because(job, states)}")
    screen.print(table)


def _because(job: Job, states: Mapping[int, State]) -> str:
    if job.state == "queued" and job.after is not None and (first := states.get(job.after)) != "done":
        held_up = f", which is {first}: it waits until that is resumed" if first in MAY_RESUME else ""
        return f"; behind job {job.after}{held_up}"
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
        ("process", str(job.pid) if job.pid else ""),
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

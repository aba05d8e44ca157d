"""Checks in processes of their own, so that one that fails, hangs or crashes does not end the others.

Outcomes are on disk after each check, so that a stop loses nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from figures import write_json

from lora_studio.errors import reason_of

PASSED, FAILED, NOT_HERE, NOT_RUN = "passed", "failed", "not here", "not run"
LOG = "log.txt"
POLL_SECONDS = 0.1
START_SECONDS = 120  # that a process may take before its first check
Figures = dict[str, Any]


class NotHere(Exception):
    """This machine does not have what the check is about."""


@dataclass(frozen=True)
class Check:
    """One thing that is tried; those of a group share a process."""

    name: str
    group: str
    seconds: float  # on a fast card, about; three times as long and half a minute is too long
    work: Callable[[], Figures]
    gib: float = 0.0  # on the device, at most
    beside: bool = False  # it does not use the device, so its group may run beside the others

    @property
    def limit(self) -> float:
        return 3 * self.seconds + 30


@dataclass
class Outcome:
    """What a check came to."""

    name: str
    state: str = NOT_RUN
    seconds: float = 0.0
    why: str = ""
    figures: Figures = field(default_factory=dict)


Report = Callable[[Mapping[str, Any], Sequence[Mapping[str, Any]]], str]


class Book:
    """All outcomes so far, on disk after each one."""

    def __init__(self, folder: Path, checks: Sequence[Check], report: Report, facts: Figures) -> None:
        self.folder, self.facts, self.report = folder, facts, report
        self.outcomes = {one.name: Outcome(one.name) for one in checks}
        self._read: Counter[Path] = Counter()
        self._lock = Lock()

    def enter(self, outcome: Outcome) -> None:
        with self._lock:
            self.outcomes[outcome.name] = outcome
            print(f"{outcome.state:8} {outcome.seconds:6.1f} s  {outcome.name}  {outcome.why}", flush=True)
            self.write()

    def news(self, lines: Path) -> list[Outcome]:
        """What processes have told there since it was last asked, in whole lines."""
        content = lines.read_bytes()[self._read[lines] :] if lines.is_file() else b""
        whole = content[: content.rfind(b"\n") + 1]
        self._read[lines] += len(whole)
        return [Outcome(**json.loads(line)) for line in whole.splitlines()]

    def write(self) -> None:
        values = [asdict(one) for one in self.outcomes.values()]
        write_json(self.facts | {"checks": values}, self.folder / "results.json")
        (self.folder / "results.md").write_text(self.report(self.facts, values), "utf-8")

    @property
    def ok(self) -> bool:
        return all(one.state in (PASSED, NOT_HERE) for one in self.outcomes.values())


def lines_of(group: str, folder: Path) -> Path:
    """What processes tell of a group's checks, a line when each begins and ends."""
    return folder / f"{group.replace(' ', '_')}.jsonl"


def work_off(names: Sequence[str], checks: Sequence[Check], folder: Path) -> None:
    """What a process of its own does: one check after another, a line when each begins and ends."""
    by_name = {one.name: one for one in checks}
    with lines_of(by_name[names[0]].group, folder).open("a", encoding="utf-8") as lines:

        def tell(outcome: Outcome) -> None:
            lines.write(json.dumps(asdict(outcome), default=str) + "\n")
            lines.flush()

        for name in names:
            tell(Outcome(name))
            began = time.perf_counter()
            state, why, figures = _try(by_name[name].work)
            tell(Outcome(name, state, round(time.perf_counter() - began, 1), why, figures))
            if "CUDA error" in why:  # nothing works in a process after one
                os._exit(1)


def _try(work: Callable[[], Figures]) -> tuple[str, str, Figures]:
    try:
        return PASSED, "", work()
    except NotHere as error:
        return NOT_HERE, str(error), {}
    except Exception as error:  # whatever a library, a driver or a compiler has to say
        traceback.print_exc()
        return FAILED, f"{type(error).__name__}: {reason_of(error)}", {}


def supervise(
    checks: Sequence[Check], book: Book, start: Callable[[list[str]], subprocess.Popen[bytes]], until: float
) -> None:
    """Have a process work off the checks, all of one group, and another one what is left when that one dies.

    `until`: the time of time.monotonic when all has to end. A check that hangs is ended, and has failed.
    """
    left = {one.name: one for one in checks}
    while left and time.monotonic() < until:
        process = start([*left])
        try:
            current, began, told = _follow(process, left, book, until)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if current or not told:
            name, took = current or next(iter(left)), time.monotonic() - began
            late = time.monotonic() > until
            ended = f"its process ended with {process.returncode} after {took:.0f} s; {LOG} tells more"
            why = "the time for everything was over" if late else ended
            book.enter(Outcome(name, NOT_RUN if late else FAILED, round(took, 1), why))
            del left[name]


def _follow(
    process: subprocess.Popen[bytes], left: dict[str, Check], book: Book, until: float
) -> tuple[str, float, int]:
    """Enter what the process tells, and strike it off what is left, until it ends or should be ended.

    The name of the check that it was at, or none; since when; and how much it told.
    """
    current, began, told = "", time.monotonic(), 0
    lines = lines_of(next(iter(left.values())).group, book.folder)
    while True:
        ended = process.poll() is not None
        for outcome in book.news(lines):
            told += 1
            if outcome.state == NOT_RUN:
                current, began = outcome.name, time.monotonic()
            elif left.pop(outcome.name, None):
                book.enter(outcome)
                current, began = "", time.monotonic()
        limit = left[current].limit if current else START_SECONDS
        if ended or not left or time.monotonic() > min(until, began + limit):
            return current, began, told
        time.sleep(POLL_SECONDS)

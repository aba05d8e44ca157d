"""What the queue and the run folders say, read once for any number of pages."""

from __future__ import annotations

import hashlib
import json
import time
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

from lora_studio.errors import StudioError
from lora_studio.jobs import AT_WORK, Job, Queue
from lora_studio.recipe.run_recipe import RUN_RECIPE
from lora_studio.runs import METRICS, SUMMARY, VALIDATION, ReadOnlyRun, step_of
from lora_studio.runs.following import FollowedRows
from lora_studio.runs.lock import LOCK, Holder
from lora_studio.text import duration, shown
from lora_studio.web.curves import FollowedCurve, Point, is_number, thinned
from lora_studio.web.folders import AllowedFolders

JOBS_SECONDS, RUNS_SECONDS, PLACES_SECONDS = 3.0, 0.4, 2.0  # how old what a page is told may be
_LAST_STEPS = 20  # by which the time that is left is told
_POINTS, _SPARKS = 600, 60  # of a curve in a chart, and in a list
_MOST_BYTES = 2**20  # of a small file in a run's folder


@dataclass(frozen=True)
class RunNow:
    """What a run has come to, as a list or a page of its own shows it."""

    id: str  # in addresses
    name: str
    folder: Path
    state: str  # a job's, or training, finished, stopped
    job: int | None
    device: str  # of its job while that is at work; else ""
    step: int
    steps: int | None  # None before its recipe is written
    loss: float | None
    seconds_left: float | None
    losses: tuple[float, ...]  # few enough for a line of a list
    preview: str  # the newest sheet's name in previews/
    reason: str  # how its job ended
    changed_at: float  # seconds since 1970
    version: tuple[int, ...]  # another one whenever anything is new

    @property
    def at_work(self) -> bool:
        return self.state in (*AT_WORK, "training")

    @property
    def time_left(self) -> str:
        return f"about {duration(self.seconds_left)} left" if self.seconds_left is not None else ""

    def to_json(self) -> dict[str, Any]:
        names = ("id", "name", "state", "job", "step", "steps", "loss", "seconds_left", "preview", "reason")
        return {name: getattr(self, name) for name in names} | {"folder": shown(str(self.folder))}


class LiveRuns:
    """Every look at the disk is shared; each file of measurements is read on from where it was."""

    def __init__(self, folders: AllowedFolders, queue: Queue) -> None:
        self.folders, self.queue = folders, queue
        self.fault = ""  # why the queue cannot be read
        self._jobs: list[Job] = []
        self._jobs_at = self._runs_at = self._places_at = 0.0
        self._places: dict[str, Path] = {}
        self._runs: dict[str, RunNow] = {}
        self._followed: dict[Path, FollowedRows] = {}
        self._curves: dict[tuple[Path, str], FollowedCurve] = {}

    def jobs(self) -> list[Job]:
        """By number. A queue that cannot be read keeps what was last seen; `fault` says so."""
        return self.read_jobs() if time.monotonic() - self._jobs_at > JOBS_SECONDS else self._jobs

    def read_jobs(self) -> list[Job]:
        """From the disk, which may wait for whoever writes there: called often by a thread of its own."""
        try:
            self._jobs, self.fault = self.queue.jobs(), ""
        except StudioError as error:
            self.fault = str(error)
        self._jobs_at = time.monotonic()
        return self._jobs

    def look_again(self) -> None:
        """Something was changed: the next look is at the disk."""
        self._jobs_at = self._runs_at = self._places_at = 0.0

    def runs(self) -> list[RunNow]:
        """The newest first."""
        if time.monotonic() - self._runs_at > RUNS_SECONDS:
            jobs = self._jobs_by_run()
            self._runs = {name: self._now(name, one, jobs.get(one)) for name, one in self.places().items()}
            self._runs_at = time.monotonic()
        return sorted(self._runs.values(), key=lambda one: (not one.at_work, -one.changed_at))

    def run(self, number: str) -> RunNow:
        """As a list has it. Raises StudioError if there is no run of that id."""
        self.runs()
        if number in self._runs:
            return self._runs[number]
        self.look_for(number)
        return self.look_at(number)

    def look_for(self, number: str) -> None:
        """A run that somebody asks for may be newer than what was found last."""
        if number not in self.places():
            self._places_at = 0.0

    def look_at(self, number: str) -> RunNow:
        """One run, at once, and at no other. Raises StudioError as `run` does."""
        if number not in self.places():
            raise StudioError(f"there is no run {shown(number, limit=100)} here; it may have been moved.")
        folder = self._places[number]
        return self._now(number, folder, self._jobs_by_run().get(folder))

    def _jobs_by_run(self) -> dict[Path, Job]:
        return {Path(job.run): job for job in self.jobs() if job.run}

    def rows(self, folder: Path, name: str = METRICS) -> FollowedRows:
        """The measurements in a run's folder, as of now."""
        path = folder / name
        followed = self._followed.setdefault(path, FollowedRows(path))
        followed.look()
        return followed

    def curve(self, folder: Path, name: str, file: str = METRICS) -> list[Point]:
        """The course of one of the measurements in a run's folder, thinned, as far as `rows` has read it."""
        followed = self.rows(folder, file)
        return self._curves.setdefault((followed.path, name), FollowedCurve(followed, name, _POINTS)).points()

    def places(self) -> dict[str, Path]:
        """Id -> folder, of runs in the allowed folders and of those that jobs are to make there."""
        if time.monotonic() - self._places_at > PLACES_SECONDS:
            found = dict.fromkeys(one for one in self._jobs_by_run() if self.folders.allows(one))
            for root in self.folders.roots:
                for parent in (root / "runs", root):
                    with suppress(OSError):
                        found |= dict.fromkeys(one for one in sorted(parent.iterdir()) if self._is_run(one))
            self._places = {name: folder for folder, name in _ids([*found]).items()}
            self._places_at = time.monotonic()
        return self._places

    def _is_run(self, folder: Path) -> bool:
        return (folder / RUN_RECIPE).is_file() and self.folders.allows(folder)

    def _now(self, number: str, folder: Path, job: Job | None) -> RunNow:
        metrics, validation = self.rows(folder), self.rows(folder, VALIDATION)
        last = metrics.rows[-1] if metrics.rows else {}
        steps = steps_of(folder)
        step = int(last.get("step", 0))
        state = job.state if job is not None and job.state != "done" else _state_of(folder)
        preview = newest_preview(folder)
        left = _seconds_left(metrics.rows, steps) if state in (*AT_WORK, "training") else None
        version = (metrics.version, validation.version, hash((state, preview, steps)))
        return RunNow(
            number,
            shown(folder.name, limit=100),
            folder,
            state,
            None if job is None else job.id,
            job.device if job is not None and job.state in AT_WORK else "",
            step,
            steps,
            last.get("loss"),
            left,
            tuple(thinned([value for _, value in self.curve(folder, "loss")], _SPARKS)),
            preview,
            "" if job is None else job.reason,
            _changed_at(folder),
            version,
        )


def _ids(places: list[Path]) -> dict[Path, str]:
    """The folder's name, and where two have the same, with letters that stay the same behind it."""
    names = [one.name for one in places]
    return {
        one: one.name
        if names.count(one.name) == 1
        else f"{one.name}~{hashlib.sha256(str(one).encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
        for one in places
    }


def _state_of(folder: Path) -> str:
    """Of a run without a job."""
    with suppress(OSError, ValueError, TypeError, RecursionError):
        if Holder(**json.loads((folder / LOCK).read_bytes()[:4096])).runs:
            return "training"
    return "finished" if (folder / SUMMARY).is_file() else "stopped"


def steps_of(folder: Path) -> int | None:
    """By the recipe in a run's folder, of which no more is asked."""
    try:
        status = (folder / RUN_RECIPE).stat()
    except OSError:
        return None
    return _steps_in(folder / RUN_RECIPE, status.st_mtime_ns) if status.st_size < _MOST_BYTES else None


@lru_cache(maxsize=1000)
def _steps_in(recipe: Path, changed_at: int) -> int | None:
    """`changed_at` has it read again when it is another."""
    with suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
        steps = tomllib.loads(recipe.read_text("utf-8"))["training"]["steps"]
        return steps if type(steps) is int and steps > 0 else None
    return None


def _seconds_left(rows: list[dict[str, Any]], steps: int | None) -> float | None:
    """By the steps alone; previews and validation come on top."""
    told = [row["seconds"] for row in rows[-_LAST_STEPS:] if is_number(row.get("seconds"))]
    if not told or steps is None:
        return None
    return float(median(told) * max(0, steps - int(rows[-1]["step"])))


def preview_sheets(folder: Path) -> list[str]:
    """The names of the sheets in previews/, by their steps."""
    with suppress(OSError):
        return sorted(one.name for one in (folder / "previews").glob("step_*.png"))
    return []


def newest_preview(folder: Path) -> str:
    return next(reversed(preview_sheets(folder)), "")


def _changed_at(folder: Path) -> float:
    for name in (METRICS, RUN_RECIPE, "."):
        with suppress(OSError):
            return (folder / name).stat().st_mtime
    return 0.0


def checkpoints_of(folder: Path) -> list[int]:
    """The steps of a run's checkpoints."""
    return [*map(step_of, ReadOnlyRun(folder).checkpoints())]

"""What the pages of a run show of it: looked at once for all of them, and told to each as it changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, replace

from lora_studio.errors import StudioError
from lora_studio.jobs import Queue, last_lines
from lora_studio.runs import METRICS, VALIDATION
from lora_studio.web.gpu_memory import GpuMemory
from lora_studio.web.live import LiveRuns, RunNow, checkpoints_of, preview_sheets

LOOK_SECONDS = 0.2
_SLOW = 5  # every so many looks also at what changes seldom: folders and the log
_LOG_BYTES, _LOG_LINES = 40_000, 200


@dataclass(frozen=True)
class RunSeen:
    """A run as a page of its own shows it."""

    run: RunNow
    numbers: str = ""  # of the last step, in words
    sheets: tuple[str, ...] = ()  # of previews
    checkpoints: tuple[int, ...] = ()  # their steps
    course: tuple[int, int] = (0, 0)  # versions of its measurements, those on validation images last
    log: str = ""  # its end
    gpu: str = ""  # how much of its memory is taken


class RunFeed:
    """One for each run that a page shows; it rests while none does."""

    def __init__(self, live: LiveRuns, queue: Queue, gpus: GpuMemory, run: str) -> None:
        self._live, self._queue, self._gpus, self._id = live, queue, gpus, run
        self._seen: RunSeen | None = None
        self._log: tuple[int, float] = (0, 0.0)  # the job, and when its log was written to
        self._pages = 0
        self._new = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    def now(self) -> RunSeen:
        """By a look at everything. Raises StudioError if the run is not there."""
        self._live.look_for(self._id)
        self._seen = self._look(slow=True)
        return self._seen

    async def changes(self) -> AsyncIterator[RunSeen]:
        """As it is now, and then whenever anything is new, for as long as it is iterated over."""
        self._pages += 1
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_on())
        told: RunSeen | None = None
        try:
            while True:
                new = self._new
                if self._seen is not None and self._seen is not told:
                    told = self._seen
                    yield told
                else:
                    await new.wait()
        finally:
            self._pages -= 1

    async def _look_on(self) -> None:
        looks = 0
        while self._pages:
            if looks % _SLOW == 0 and self._seen is not None:
                await self._gpus.look(self._seen.run)
            with suppress(StudioError):  # the run was moved away: what was seen last stays
                seen = self._look(slow=looks % _SLOW == 0)
                if seen != self._seen:
                    self._seen = seen
                    waiting, self._new = self._new, asyncio.Event()
                    waiting.set()
            looks += 1
            await asyncio.sleep(LOOK_SECONDS)
        self._looking = None

    def _look(self, *, slow: bool) -> RunSeen:
        run = self._live.look_at(self._id)
        before = self._seen or RunSeen(run)
        seen = replace(before, run=run, numbers=self._numbers(run))
        if not slow:
            return seen
        sheets, checkpoints = tuple(preview_sheets(run.folder)), tuple(checkpoints_of(run.folder))
        measured, validated = (self._live.rows(run.folder, name).version for name in (METRICS, VALIDATION))
        return replace(
            seen,
            sheets=sheets,
            checkpoints=checkpoints,
            course=(measured, validated),
            log=self._end_of_log(run),
            gpu=self._gpus.words if run.at_work else "",
        )

    def _numbers(self, run: RunNow) -> str:
        rows = self._live.rows(run.folder).rows
        last = rows[-1] if rows else {}
        told_of = {"loss": last.get("loss"), "learning rate": last.get("learning_rate")}
        words = [f"{name} {value:.4g}" for name, value in told_of.items() if isinstance(value, int | float)]
        seconds = last.get("seconds")
        return ", ".join(words + ([f"{seconds:.2f} s a step"] if isinstance(seconds, int | float) else []))

    def _end_of_log(self, run: RunNow) -> str:
        """Read again if it has grown."""
        before = self._seen.log if self._seen is not None else ""
        if run.job is None:
            return ""
        path = self._queue.log(run.job)
        try:
            written = (run.job, path.stat().st_mtime)
        except OSError:
            return before
        if written == self._log:
            return before
        self._log = written
        return "\n".join(last_lines(path, _LOG_BYTES)[-_LOG_LINES:])

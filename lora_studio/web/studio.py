"""What all pages of a start share: its settings, what it sees of the runs, and the processes behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from lora_studio.errors import StudioError
from lora_studio.jobs import Job, Queue
from lora_studio.jobs.adding import resumed_digest
from lora_studio.web.commands import VerbRunner
from lora_studio.web.feed import RunFeed
from lora_studio.web.folders import AllowedFolders
from lora_studio.web.gpu_memory import GpuMemory
from lora_studio.web.kept_process import KeptProcess
from lora_studio.web.live import LiveRuns
from lora_studio.web.security import Keys
from lora_studio.web.settings import WebSettings
from lora_studio.web.work import begin_work, startable

_LOOK_SECONDS = 0.5
_PATIENCE = 3  # looks, in which a worker that was started by hand takes what waits


@dataclass
class WebStudio:
    """One start of the page."""

    settings: WebSettings
    keys: Keys
    queue: Queue
    live: LiveRuns
    verbs: VerbRunner
    kept: KeptProcess = field(default_factory=KeptProcess)  # for tokenizers, and whatever else brings torch
    starts_workers: bool = True
    trouble: str = ""  # why no worker could be started
    on_ready: Callable[[], None] = lambda: None
    _watching: asyncio.Task[None] | None = field(default=None, repr=False)
    _feeds: dict[str, RunFeed] = field(default_factory=dict, repr=False)
    _gpus: GpuMemory = field(default_factory=GpuMemory, repr=False)

    @property
    def folders(self) -> AllowedFolders:
        return self.settings.folders

    def add(self, job: Job) -> Job:
        """Queue it, and have a worker do it. Raises StudioError as `queue add` does."""
        added = self.queue.add(job)
        self.live.look_again()
        return added

    def stop(self, number: int) -> Job:
        """As `queue stop`."""
        job = self.queue.stop(number)
        self.live.look_again()
        return job

    def resume(self, number: int) -> Job:
        """As `queue resume`: a training goes on from its newest checkpoint, with its recipe as it now is."""
        job = self.queue.resume(number, recipe_sha256=resumed_digest(self.queue.job(number)))
        self.live.look_again()
        return job

    def remove(self, number: int) -> Job:
        """As `queue remove`."""
        job = self.queue.remove(number)
        self.live.look_again()
        return job

    def feed(self, run: str) -> RunFeed:
        """The one that all pages of a run look through."""
        return self._feeds.setdefault(run, RunFeed(self.live, self.queue, self._gpus, run))

    async def begin(self) -> None:
        """Called once the server runs."""
        self._watching = asyncio.create_task(self._have_work_done())
        self.on_ready()

    async def end(self) -> None:
        """The worker and its jobs go on."""
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
        self.kept.close()
        await self.verbs.close()

    async def _have_work_done(self) -> None:
        waited = 0
        while True:
            jobs = await asyncio.to_thread(self.live.read_jobs)
            waited = waited + 1 if startable(jobs) else 0
            if self.starts_workers and waited >= _PATIENCE:
                try:
                    await asyncio.to_thread(begin_work, self.queue, jobs)
                    self.trouble = ""
                except StudioError as error:
                    self.trouble = str(error)
            await asyncio.sleep(_LOOK_SECONDS)


_current: WebStudio | None = None


def open_studio(settings: WebSettings, queue: Queue | None = None) -> WebStudio:
    """From now on `studio()` is this one."""
    global _current
    there = queue or Queue()
    live = LiveRuns(settings.folders, there)
    runner = VerbRunner(settings.folders.project)
    _current = WebStudio(settings, Keys(settings.token), there, live, runner)
    return _current


def studio() -> WebStudio:
    """The one that is open."""
    assert _current is not None, "open_studio comes first"
    return _current

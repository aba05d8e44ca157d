"""Does the queue's jobs, each in a process of its own, one at a time on each device."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lora_studio.errors import RecipeError, StudioError
from lora_studio.files import digest
from lora_studio.jobs import Job, Queue, State, last_lines
from lora_studio.runs import ReadOnlyRun
from lora_studio.runs.interrupts import interruptible

CPU = "cpu"
POLL_SECONDS, BEAT_SECONDS = 0.2, 5.0
ASKED_TO_STOP = 130  # the exit code of a verb that was stopped and can go on
_LAST_BYTES = 4096  # of a log, where its last line is


class JobProcess(Protocol):
    """What a worker asks of a job's process, here or on a cluster."""

    pid: int

    def poll(self) -> int | None:
        """The exit code once it has ended."""

    def wait(self) -> int:
        """The exit code."""

    def send_signal(self, number: int) -> None:
        """SIGTERM: write a checkpoint and end."""


@dataclass
class Slot:
    """A device, and the process that has it."""

    device: str
    job: Job | None = None
    process: JobProcess | None = None
    locks: tuple[int, ...] = ()  # of device and job: held until both processes have ended
    beat_at: float = 0.0
    told_to_stop: bool = False
    waits: bool = False  # for a GPU that another worker has

    @property
    def is_idle(self) -> bool:
        return self.job is None and not self.waits


def command_of(job: Job) -> list[str]:
    """What a job is started with; a training that has checkpoints goes on from the newest."""
    again = ["--resume"] if job.run and ReadOnlyRun(Path(job.run)).checkpoints() else []
    return [sys.executable, "-m", "lora_studio", *job.arguments, *again]


def devices_found() -> list[str]:
    """A slot for each GPU, or one for the processor."""
    import torch

    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or [CPU]


def devices_named(words: str, found: Callable[[], list[str]] = devices_found) -> list[str]:
    """As "cuda:0,cuda:1" or "cpu" as slots; every GPU without words.

    Raises RecipeError for anything else, and for a GPU that is not there: all jobs would fail on it.
    """
    named = [one.strip() for one in words.split(",") if one.strip()]
    for one in named:
        if one != CPU and not re.fullmatch(r"cuda:[0-9]{1,3}", one):
            raise RecipeError(f"--devices has {one!r}; name cuda:0, cuda:1 and so on, or cpu.")
    if len(set(named)) < len(named):
        raise RecipeError(
            f"--devices names {max(named, key=named.count)} twice; a device does one job at a time."
        )
    if named == [CPU]:
        return named
    there = found()
    if missing := [one for one in named if one != CPU and one not in there]:
        raise RecipeError(
            f"--devices has {missing[0]}, which is not there; this machine has {', '.join(there)}."
        )
    return named or there


class Worker:
    """Takes jobs until the queue is empty, or for good; any number of them can share a queue."""

    def __init__(
        self,
        queue: Queue,
        devices: Sequence[str],
        *,
        command: Callable[[Job], list[str]] = command_of,
        on_change: Callable[[Job], None] = lambda job: None,
        on_beat: Callable[[Job], None] = lambda job: None,
        on_trouble: Callable[[StudioError], None] = lambda error: None,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        self.queue, self.slots = queue, [Slot(device) for device in devices]
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._command, self._on_change, self._on_beat = command, on_change, on_beat
        self._on_trouble, self._on_stop = on_trouble, on_stop

    def work(self, *, until_empty: bool) -> None:
        """Ends when no job is left that could begin and none runs, if `until_empty`.

        A queue that cannot be written, on a full disk say, is tried again until it can: the jobs go on.
        Raises KeyboardInterrupt for Ctrl-C, SIGTERM and SIGHUP, once the jobs have written their checkpoints.
        """
        with interruptible(self._on_stop) as asked, self.queue.in_sight(self.name):
            try:
                while not asked.is_set():
                    troubled = any([self._in_trouble(self._look_after, slot) for slot in self.slots])
                    if until_empty and not troubled and all(slot.is_idle for slot in self.slots):
                        return
                    asked.wait(BEAT_SECONDS if troubled else POLL_SECONDS)
            finally:
                self._stop_all()
        raise KeyboardInterrupt

    def _stop_all(self) -> None:
        for slot in self.slots:
            self._tell_to_stop(slot)
        for slot in self.slots:
            if slot.process is not None:
                slot.process.wait()
                self._in_trouble(self._finish, slot)

    def _in_trouble(self, act: Callable[[Slot], None], slot: Slot) -> bool:
        """Whether the queue could not be used."""
        try:
            act(slot)
        except StudioError as error:
            self._on_trouble(error)
            return True
        return False

    def _look_after(self, slot: Slot) -> None:
        if slot.process is not None and slot.process.poll() is not None:
            self._finish(slot)
        while slot.job is None and self._take(slot):
            pass
        if slot.job is None or slot.process is None:
            return
        if time.monotonic() - slot.beat_at > BEAT_SECONDS or slot.beat_at == 0:
            slot.beat_at = time.monotonic()
            if self.queue.beat(slot.job.id, slot.process.pid) == "stopping":
                self._tell_to_stop(slot)
            self._on_beat(slot.job)

    def _take(self, slot: Slot) -> bool:
        """Begins the next job, unless the GPU is another worker's, or of a job whose worker was killed."""
        is_gpu = slot.device.startswith("cuda")
        device = self.queue.lock(_lock_of(slot.device)) if is_gpu else None
        slot.waits = is_gpu and device is None and self.queue.is_ready()
        if is_gpu and device is None:
            return False
        slot.locks = () if device is None else (device,)
        taken = None
        try:
            if taken := self.queue.take(self.name, slot.device):
                slot.locks += (taken[1],)
                self._start(slot, taken[0])
        finally:
            if slot.job is None:
                _close(slot)
        return taken is not None

    def _start(self, slot: Slot, job: Job) -> None:
        try:
            _refuse_changed_recipe(job)
            slot.process = self._begin(slot, job)
        except (StudioError, OSError) as error:
            reason = str(error) if isinstance(error, StudioError) else _of_system(error)
            self._on_change(self.queue.ended(job.id, "failed", reason))
            return
        slot.job, slot.beat_at, slot.told_to_stop = job, 0.0, False
        self._on_change(job)

    def _begin(self, slot: Slot, job: Job) -> JobProcess:
        with self.queue.log(job.id).open("ab") as log:
            return subprocess.Popen(
                self._command(job),
                cwd=job.folder,
                env=_environment(slot.device),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the worker, which passes it on
                pass_fds=() if os.name == "nt" else slot.locks,
            )

    def _tell_to_stop(self, slot: Slot) -> None:
        if slot.process is not None and not slot.told_to_stop:
            slot.told_to_stop = True
            slot.process.send_signal(signal.SIGTERM)

    def _finish(self, slot: Slot) -> None:
        assert slot.job is not None and slot.process is not None
        state, reason = _ending(slot.process.wait(), self.queue.log(slot.job.id))
        ended = self.queue.ended(slot.job.id, state, reason)
        _close(slot)
        slot.job = slot.process = None
        self._on_change(ended)


def _close(slot: Slot) -> None:
    for lock in slot.locks:
        os.close(lock)
    slot.locks = ()


def _environment(device: str) -> dict[str, str]:
    """A job on one of several GPUs sees that one alone; on the processor none."""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "" if device == CPU else _gpu_of(device)}


def _gpu_of(device: str) -> str:
    """What CUDA_VISIBLE_DEVICES calls it: of those that this worker sees itself, if not all are its."""
    number = int(device.removeprefix("cuda:"))
    seen = [one.strip() for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one.strip()]
    return seen[number] if number < len(seen) else str(number)


def _lock_of(device: str) -> str:
    return re.sub(r"[^\w.-]", "_", f"{socket.gethostname()}-gpu-{_gpu_of(device)}")


def _refuse_changed_recipe(job: Job) -> None:
    if not job.recipe:
        return
    if not Path(job.recipe).is_file():
        raise StudioError(f"the recipe {job.recipe} is not there any more.")
    if digest(Path(job.recipe)) != job.recipe_sha256:
        raise StudioError(
            f"the recipe {job.recipe} was changed since the job was added; `queue resume {job.id}` trains it "
            "as it is now."
        )


def _ending(code: int, log: Path) -> tuple[State, str]:
    if code == 0:
        return "done", ""
    if code in (ASKED_TO_STOP, -signal.SIGTERM):
        return "stopped", "stopped when it was asked to"
    if code < 0:
        return "failed", f"its process was ended by signal {-code}; 9 often means that memory ran out"
    return "failed", _last_line(log) or f"it ended with exit code {code}"


def _last_line(log: Path) -> str:
    told = last_lines(log, _LAST_BYTES)
    fault = next((line for line in reversed(told) if line.startswith("error:")), told[-1] if told else "")
    return fault.removeprefix("error: ")


def _of_system(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    return f"its process could not be started: {error.strerror or error}{where}."

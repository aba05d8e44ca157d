"""Jobs on a Ray cluster: each is an actor with a GPU of its own, on whichever machine has one free.

Ray finds the machine, counts its GPUs and says when it is gone. A job's process runs there as it would here,
in the same folders: machines share a disk, at the same path. What a lost machine was at goes on elsewhere
from its newest checkpoint.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_studio.errors import StudioError, reason_of
from lora_studio.jobs import Job, Queue
from lora_studio.jobs.worker import Slot, Worker, command_of
from lora_studio.runs.lock import LOCK

if TYPE_CHECKING:
    from types import ModuleType

MOST_LOST = 5  # machines that a job may lose before it fails
LOOK_SECONDS = 1.0  # between two questions to a machine
LOST = 75  # the exit code of a job that has lost as many, EX_TEMPFAIL
_PASSED_ON = ("LORA_STUDIO_CACHE", "HF_HOME", "HF_HUB_OFFLINE", "PYTHONPATH")
_OF_THREADS = "OMP_NUM_THREADS"  # which Ray sets to 1 for its workers
INSTALL = 'pip install "lora-studio[ray]"'


def connected(address: str) -> ModuleType:
    """Ray, connected to the cluster at the address. Raises StudioError without Ray, or without a cluster."""
    try:
        import ray
    except ImportError:
        raise StudioError(f"--ray needs Ray, which is not installed; install it with: {INSTALL}") from None
    try:
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise StudioError(
            f"there is no Ray cluster at {address} ({reason_of(error)}); begin one with `ray start --head`, "
            "and give --ray auto on that machine."
        ) from None
    module: ModuleType = ray
    return module


def places(ray: ModuleType) -> tuple[list[str], dict[str, float]]:
    """A slot for each GPU of the cluster, or for each processor if it has none, and what a job takes."""
    there = ray.cluster_resources()
    if gpus := int(there.get("GPU", 0)):
        return [f"ray gpu {number}" for number in range(gpus)], {"num_gpus": 1, "num_cpus": 0}
    return [f"ray cpu {number}" for number in range(int(there.get("CPU", 1)))], {"num_cpus": 1}


def slots_of(address: str) -> list[str]:
    """What a worker on the cluster works on. Raises StudioError as `connected` does."""
    return places(connected(address))[0]


Command = Callable[[Job], list[str]]


class JobActor:
    """What a machine of the cluster does for one job."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._told = b""

    def run(self, arguments: Sequence[str], folder: str, environment: dict[str, str]) -> int:
        """The exit code of a process; it ends with this one, which ends with the machine's place in Ray."""
        known = {name: value for name, value in os.environ.items() if name != _OF_THREADS}
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=known | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._told += line
        return self._process.wait()

    def told(self, since: int) -> bytes:
        """What it has printed, from this byte on."""
        return self._told[since:]

    def stop(self) -> None:
        """Have it write a checkpoint and end."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class RayProcess:
    """A job on the cluster, with what the worker asks of a process."""

    def __init__(
        self, ray: ModuleType, job: Job, takes: dict[str, float], command: Command, log: Path
    ) -> None:
        self.returncode: int | None = None
        self.pid = 0  # it is on another machine
        self._ray, self._job, self._takes, self._command, self._log = ray, job, takes, command, log
        self._lost, self._asked_at, self._stopping = 0, 0.0, False
        self._begin()

    def _begin(self) -> None:
        actor = self._ray.remote(JobActor).options(max_concurrency=2, **self._takes)
        given = {name: os.environ[name] for name in (*_PASSED_ON, _OF_THREADS) if name in os.environ}
        self._actor, self._since = actor.remote(), 0
        self._ended = self._actor.run.remote(self._command(self._job)[1:], self._job.folder, given)

    def poll(self) -> int | None:
        """The exit code, if it has ended. On a machine that is lost it begins again."""
        if self.returncode is not None or time.monotonic() - self._asked_at < LOOK_SECONDS:
            return self.returncode
        done, _ = self._ray.wait([self._ended], timeout=0)
        try:
            if done or self._asked_at:
                self._listen()
            if done:
                self.returncode = int(self._ray.get(self._ended))
                self._ray.kill(self._actor)
        except self._ray.exceptions.GetTimeoutError:
            pass  # it waits for a machine
        except self._ray.exceptions.RayTaskError as error:  # its process could not be begun
            self._note(f"error: {reason_of(error.cause)}")
            self.returncode = 1
        except self._ray.exceptions.RayError as error:
            self._again(error)
        self._asked_at = time.monotonic()
        return self.returncode

    def wait(self) -> int:
        while (code := self.poll()) is None:
            time.sleep(LOOK_SECONDS)
        return code

    def send_signal(self, number: int) -> None:
        """Any signal asks it to stop."""
        self._stopping = True
        self._actor.stop.remote()

    def _listen(self) -> None:
        news = self._ray.get(self._actor.told.remote(self._since), timeout=LOOK_SECONDS)
        self._since += len(news)
        with self._log.open("ab") as log:
            log.write(news)

    def _note(self, line: str) -> None:
        with self._log.open("ab") as log:
            log.write(f"{line}\n".encode("utf-8", "replace"))

    def _again(self, error: Exception) -> None:
        self._lost += 1
        self._note(f"its machine was lost ({reason_of(error)})")
        if self._stopping or self._lost > MOST_LOST:
            self.returncode = -signal.SIGTERM if self._stopping else LOST
            return
        if self._job.run:  # of a process that Ray knows to be gone, though no one here could see it
            (Path(self._job.run) / LOCK).unlink(missing_ok=True)
        self._begin()


class RayWorker(Worker):
    """Hands the jobs of a queue to a cluster, as many at a time as it has GPUs."""

    def __init__(self, queue: Queue, address: str, *, command: Command = command_of, **told: Any) -> None:
        self._ray = connected(address)
        devices, self._takes = places(self._ray)
        super().__init__(queue, devices, command=command, **told)

    def _begin(self, slot: Slot, job: Job) -> RayProcess:
        return RayProcess(self._ray, job, self._takes, self._command, self.queue.log(job.id))

"""Has a worker do the queue's jobs: a process of its own, which outlives the page's server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from lora_studio.errors import StudioError
from lora_studio.jobs import AT_WORK, Job, Queue
from lora_studio.runs.lock import system_lock

_LOCK, _LOG = "web_worker.lock", "web_worker.log"


def startable(jobs: Sequence[Job]) -> bool:
    """Whether one of them waits for a worker and for nothing else."""
    done = {job.id for job in jobs if job.state == "done"}
    return any(job.state == "queued" and (job.after is None or job.after in done) for job in jobs)


def begin_work(queue: Queue, jobs: Sequence[Job]) -> bool:
    """Start a worker if a job waits and there is none, at work or idle; whether it was started.

    It ends when the queue is empty. Its lock, which only it has open, says that it is there from its first
    moment on: a server that is started again does not start a second one.
    Raises StudioError if the process cannot be started, and for a queue that cannot be used.
    """
    if not startable(jobs) or any(job.state in AT_WORK for job in jobs) or queue.has_worker():
        return False
    try:
        queue.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(queue.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if system_lock(lock) is False:
                return False
            _start(queue, lock)
        finally:
            os.close(lock)
    except OSError as error:
        raise StudioError(f"no worker could be started for the queue ({error.strerror or error}).") from None
    return True


def _start(queue: Queue, lock: int) -> None:
    with (queue.folder / _LOG).open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-P", "-m", "lora_studio", "queue", "work", "--until-empty"],
            env={**os.environ, "LORA_STUDIO_HOME": str(queue.folder)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # neither Ctrl-C nor the end of the server is for it
            pass_fds=() if os.name == "nt" else (lock,),
        )

"""Workers of a queue, killed at random: `attack.py QUEUE` is one of them, whose jobs are stubs."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from lora_studio.jobs import Job, Queue
from lora_studio.jobs.worker import Worker

STEPS = 6
# A run in small: it goes on from its checkpoint, and its bytes are a chain of digests. Each step is told with
# the process that made it; a lock of its own would be refused to a second process.
STUB = """
import fcntl, hashlib, os, sys, time
folder, job, seconds, steps = sys.argv[1:]
told = open(f"{folder}/{job}.told", "a", buffering=1)
busy = open(f"{folder}/{job}.busy", "w")
try:
    fcntl.flock(busy, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    told.write(f"{os.getpid()} TWICE\\n")
checkpoint = f"{folder}/{job}.checkpoint"
step, state = 0, job
if os.path.exists(checkpoint):
    number, state = open(checkpoint).read().split()
    step = int(number)
told.write(f"{os.getpid()} from {step}\\n")
while step < int(steps):
    time.sleep(float(seconds))
    step, state = step + 1, hashlib.sha256(state.encode()).hexdigest()
    with open(f"{checkpoint}.{os.getpid()}", "w") as file:
        file.write(f"{step} {state}")
    os.replace(file.name, checkpoint)
    told.write(f"{os.getpid()} {step}\\n")
with open(f"{folder}/{job}.result", "w") as file:
    file.write(state)
"""


def stub(job: Job) -> list[str]:
    """The command of a job whose arguments are a folder and the seconds of a step."""
    folder, seconds = job.arguments
    return [sys.executable, "-S", "-E", "-c", STUB, folder, str(job.id), seconds, str(STEPS)]


def expected(job: int) -> str:
    """The result of a job that was never interrupted."""
    state = str(job)
    for _ in range(STEPS):
        state = hashlib.sha256(state.encode()).hexdigest()
    return state


def start_worker(queue: Queue) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, __file__, str(queue.folder)], stderr=subprocess.DEVNULL)


@dataclass
class Attack:
    """What was killed, and every change of a job's state in its order."""

    jobs: set[int] = field(default_factory=set)  # hit themselves, or by way of their worker
    job_kills: int = 0
    worker_kills: int = 0
    states: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))


def under_attack(folder: Path, *, jobs: int, hits: int, seed: int, limit: float) -> Attack:
    """Has three workers do the jobs while workers and jobs are killed, until `hits` jobs were hit.

    Each job waits for its processes to be seen only once: those at work are read without a lock, as a reader
    that had to wait for its turn among the workers would see few of them alive.
    """
    rng, queue, done = random.Random(seed), Queue(folder / "queue"), Attack()
    for number in range(jobs):
        after = rng.randrange(1, number + 1) if number and rng.random() < 0.2 else None
        arguments = (str(folder), f"{rng.uniform(0.05, 0.15):.3f}")
        queue.add(Job(arguments, str(folder), after=after, priority=rng.randrange(3)))
    workers, end, resumed_at = [start_worker(queue) for _ in range(3)], time.monotonic() + limit, 0.0
    try:
        while True:
            time.sleep(0.02)
            assert time.monotonic() < end, sum(job.state == "done" for job in queue.jobs())
            if len(done.jobs) < hits:
                _kill_one(rng, _at_work(queue), done)
            workers = [one if one.poll() is None else start_worker(queue) for one in workers]
            if time.monotonic() - resumed_at > 0.5:
                there, resumed_at = queue.jobs(), time.monotonic()
                for job in there:
                    if job.state in ("lost", "failed", "stopped"):
                        queue.resume(job.id)
                if all(job.state == "done" for job in there):
                    break
    finally:
        for one in workers:
            one.kill()
            one.wait()
    for _, number, state, _ in queue.history():
        done.states[number].append(state)
    return done


def _at_work(queue: Queue) -> list[tuple[int, int, str]]:
    """Job, process and worker of those that run."""
    address = f"file:{queue.path}?mode=ro"
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(address, uri=True)) as database:
        return database.execute(
            "SELECT id, pid, worker FROM jobs WHERE state = 'running' AND pid > 0"
        ).fetchall()
    return []


def _kill_one(rng: random.Random, there: list[tuple[int, int, str]], done: Attack) -> None:
    """A job that was not hit yet, its worker, or both."""
    fresh = [one for one in there if one[0] not in done.jobs]
    if not fresh or rng.random() < 0.5:
        return
    (job, pid, name), who = rng.choice(fresh), rng.choice(("job", "worker", "both"))
    worker = int(name.rpartition(":")[2])
    try:
        for one in {"job": [pid], "worker": [worker], "both": [worker, pid]}[who]:
            os.kill(one, signal.SIGKILL)
    except ProcessLookupError:  # it has just ended
        return
    done.jobs.add(job)
    done.job_kills += who != "worker"
    done.worker_kills += who != "job"


def refuse_doubles(attack: Attack, folder: Path) -> None:
    """Every job was done once, to the bytes of one that nobody touched, and never twice at a time."""
    for number, states in attack.states.items():
        assert states[0] == "queued" and states[-1] == "done" and states.count("done") == 1, (number, states)
        for before, after in itertools.pairwise(states):
            assert after != "running" or before == "queued", (number, states)
        told = [line.split() for line in (folder / f"{number}.told").read_text().splitlines()]
        assert "TWICE" not in {words[1] for words in told}, (number, told)
        processes = [pid for pid, _ in itertools.groupby(told, key=lambda words: words[0])]
        assert len(processes) == len(set(processes)), (number, told)  # none goes on once another has begun
        assert len(processes) <= states.count("running"), (number, states, told)
        assert (folder / f"{number}.result").read_text() == expected(number)


if __name__ == "__main__":
    Worker(Queue(Path(sys.argv[1])), ["cpu"], command=stub).work(until_empty=False)

"""Workers of a queue, killed at random: `attack.py QUEUE` is one of them, whose jobs are stubs."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from lora_studio.jobs import Job, Queue
from lora_studio.jobs.worker import Worker

# Takes a lock of its own, which two processes of one job could not both have, and says how it went.
STUB = """
import fcntl, os, sys, time
folder, job, seconds = sys.argv[1:]
with open(f"{folder}/{job}.busy", "w") as busy:
    try:
        fcntl.flock(busy, fcntl.LOCK_EX | fcntl.LOCK_NB)
        word = "once"
    except BlockingIOError:
        word = "TWICE"
    time.sleep(float(seconds))
    with open(f"{folder}/{job}.told", "a") as told:
        told.write(word + "\\n")
"""


def stub(job: Job) -> list[str]:
    """The command of a job whose arguments are a folder and seconds."""
    return [sys.executable, "-S", "-E", "-c", STUB, job.arguments[0], str(job.id), job.arguments[1]]


def start_worker(queue: Queue) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, __file__, str(queue.folder)], stderr=subprocess.DEVNULL)


def under_attack(folder: Path, *, jobs: int, kills: int, seed: int, limit: float) -> dict[int, list[str]]:
    """Has three workers do the jobs while workers and jobs are killed; the states of each in their order."""
    rng, queue = random.Random(seed), Queue(folder / "queue")
    for number in range(jobs):
        after = rng.randrange(1, number + 1) if number and rng.random() < 0.2 else None
        arguments = (str(folder), f"{rng.uniform(0.1, 0.9):.3f}")
        queue.add(Job(arguments, str(folder), after=after, priority=rng.randrange(3)))
    hit: set[tuple[int, int]] = set()
    workers, left, end = [start_worker(queue) for _ in range(3)], kills, time.monotonic() + limit
    try:
        while True:
            there = queue.jobs()
            if all(job.state == "done" for job in there):
                break
            assert time.monotonic() < end, {job.id: job.state for job in there}
            for job in there:
                if job.state in ("lost", "failed", "stopped"):
                    queue.resume(job.id)
            while left and _kill_one(rng, there, hit):
                left -= 1
            workers = [one if one.poll() is None else start_worker(queue) for one in workers]
            time.sleep(0.05)
    finally:
        for one in workers:
            one.kill()
            one.wait()
    states = defaultdict(list)
    for _, number, state, _ in queue.history():
        states[number].append(state)
    return states


def _kill_one(rng: random.Random, there: list[Job], hit: set[tuple[int, int]]) -> bool:
    """A job at work, its worker, or both; whether there was one that was not hit in this try of it."""
    at_work = [job for job in there if job.state == "running" and job.pid and (job.id, job.tries) not in hit]
    if not at_work or rng.random() < 0.4:
        return False
    job, who = rng.choice(at_work), rng.choice(("job", "worker", "both"))
    hit.add((job.id, job.tries))
    worker = int(job.worker.rpartition(":")[2])
    for pid in {"job": [job.pid], "worker": [worker], "both": [worker, job.pid]}[who]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return True


def refuse_doubles(states: dict[int, list[str]], folder: Path) -> None:
    """Every job was done once, and never at work twice at a time."""
    for number, told in states.items():
        assert told[0] == "queued" and told[-1] == "done" and told.count("done") == 1, (number, told)
        for before, after in itertools.pairwise(told):
            assert after != "running" or before == "queued", (number, told)
        assert "TWICE" not in (folder / f"{number}.told").read_text()


if __name__ == "__main__":
    Worker(Queue(Path(sys.argv[1])), ["cpu"], command=stub).work(until_empty=False)

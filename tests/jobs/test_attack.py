"""A queue whose workers and jobs are killed, and whose file is copied at any moment, loses nothing."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import sys
import time
from pathlib import Path

import pytest
from attack import expected, refuse_doubles, start_worker, stub, under_attack

from lora_studio.jobs import STATES, Job, Queue
from lora_studio.jobs.worker import CPU, Worker

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")


def test_every_job_is_done_once_though_workers_and_jobs_are_killed(tmp_path: Path) -> None:
    attack = under_attack(tmp_path, jobs=12, hits=5, seed=1, limit=300)
    assert len(attack.states) == 12 and len(attack.jobs) == 5
    assert sum("lost" in told or "failed" in told for told in attack.states.values()) > 0
    refuse_doubles(attack, tmp_path)


@pytest.mark.slow
def test_so_are_two_hundred(tmp_path: Path) -> None:
    attack = under_attack(tmp_path, jobs=200, hits=90, seed=2, limit=900)
    reported = sum("lost" in told or "failed" in told for told in attack.states.values())
    print(
        f"{len(attack.jobs)} jobs hit: {attack.job_kills} jobs' and {attack.worker_kills} workers' processes "
        f"were killed; {reported} were reported as lost or failed, and resumed"
    )
    assert len(attack.states) == 200 and len(attack.jobs) == 90
    assert attack.job_kills >= 40 and attack.worker_kills >= 40 and reported >= 60
    refuse_doubles(attack, tmp_path)


def test_what_is_on_the_disk_when_the_power_is_cut_is_a_whole_queue(tmp_path: Path) -> None:
    """The worker is held at any moment, also within a write, while file and log of writes are copied.

    Every other time the log's end is torn off, as of a disk that had not written all of it yet.
    """
    queue, rng = Queue(tmp_path / "queue"), random.Random(3)
    for _ in range(12):
        queue.add(Job((str(tmp_path), "0.004"), str(tmp_path)))
    worker, copies, logs = start_worker(queue), [], 0
    page = sqlite3.connect(queue.folder / "queue.sqlite3")
    try:
        while {job.state for job in queue.jobs()} == {"queued"}:  # a busy machine takes seconds to start it
            assert worker.poll() is None
            time.sleep(0.01)
        while len(copies) < 24:
            if len(copies) == 12:
                page.execute("SELECT count(*) FROM jobs").fetchone()  # beside a reader the log stays
            time.sleep(rng.uniform(0, 0.08))
            copies.append(tmp_path / f"copy{len(copies)}")
            copies[-1].mkdir()
            os.kill(worker.pid, signal.SIGSTOP)
            for name in ("queue.sqlite3", "queue.sqlite3-wal"):  # without the shared memory, which is gone
                if (queue.folder / name).exists():
                    shutil.copy(queue.folder / name, copies[-1])
            os.kill(worker.pid, signal.SIGCONT)
            log = copies[-1] / "queue.sqlite3-wal"
            logs += log.exists()
            if log.exists() and len(copies) % 2 and (size := log.stat().st_size):
                os.truncate(log, rng.randrange(size))
    finally:
        worker.kill()
        worker.wait()
        page.close()
    for copy in copies:
        with sqlite3.connect(copy / "queue.sqlite3") as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        there = Queue(copy).jobs()
        assert [job.id for job in there] == list(range(1, 13))
        assert {job.state for job in there} <= {*STATES} - {"running", "stopping"}  # their processes are gone
    assert logs > 0
    again = Queue(copies[len(copies) // 2])
    for job in again.jobs():
        if job.state in ("lost", "failed"):
            again.resume(job.id)
    Worker(again, [CPU], command=stub).work(until_empty=True)
    assert {job.state for job in again.jobs()} == {"done"}
    assert [(tmp_path / f"{number}.result").read_text() for number in range(1, 13)] == [
        expected(number) for number in range(1, 13)
    ]

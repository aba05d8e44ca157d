"""A queue whose workers and jobs are killed, and whose file is copied at any moment, loses nothing."""

from __future__ import annotations

import random
import shutil
import sqlite3
import sys
import time
from pathlib import Path

import pytest
from attack import refuse_doubles, start_worker, under_attack

from lora_studio.jobs import STATES, Job, Queue

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")


def test_every_job_is_done_once_though_workers_and_jobs_are_killed(tmp_path: Path) -> None:
    states = under_attack(tmp_path, jobs=20, kills=6, seed=1, limit=300)
    assert len(states) == 20
    assert sum("lost" in told or "failed" in told for told in states.values()) > 0
    refuse_doubles(states, tmp_path)


@pytest.mark.slow
def test_so_are_two_hundred(tmp_path: Path) -> None:
    states = under_attack(tmp_path, jobs=200, kills=80, seed=2, limit=900)
    assert len(states) == 200
    assert sum("lost" in told or "failed" in told for told in states.values()) > 0
    refuse_doubles(states, tmp_path)


def test_a_copy_of_any_moment_is_a_whole_queue(tmp_path: Path) -> None:
    """What is on the disk when the power is cut: the file, and the log of writes beside it."""
    queue, rng = Queue(tmp_path / "queue"), random.Random(3)
    for _ in range(12):
        queue.add(Job((str(tmp_path), "0.02"), str(tmp_path)))
    worker = start_worker(queue)
    try:
        for number in range(15):
            time.sleep(rng.uniform(0, 0.2))
            copy = tmp_path / f"copy{number}"
            copy.mkdir()
            for path in sorted(queue.folder.glob("queue.sqlite3*"), reverse=True):
                if not path.name.endswith("-shm"):  # memory, which is gone
                    shutil.copy(path, copy)
            with sqlite3.connect(copy / "queue.sqlite3") as database:
                assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            there = Queue(copy).jobs()
            assert [job.id for job in there] == list(range(1, 13))
            assert {job.state for job in there} <= {*STATES}
    finally:
        worker.kill()
        worker.wait()

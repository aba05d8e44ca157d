"""The queue's promises, one by one."""

from __future__ import annotations

import os
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lora_studio.errors import RecipeError, StudioError
from lora_studio.jobs import Job, Queue
from lora_studio.jobs.adding import job_of
from lora_studio.jobs.worker import CPU, Worker, devices_named


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path / "queue")


def a_job(tmp_path: Path, code: str = "pass", **values: object) -> Job:
    return replace(Job(("-c", code), str(tmp_path)), **values)


def work(queue: Queue) -> list[Job]:
    """Until it is empty; every change that was told."""
    changes: list[Job] = []
    python = lambda job: [sys.executable, "-S", "-E", *job.arguments]  # noqa: E731
    Worker(queue, [CPU], command=python, on_change=changes.append).work(until_empty=True)
    return changes


def test_jobs_are_done_by_priority_and_then_in_their_order(queue: Queue, tmp_path: Path) -> None:
    for priority in (0, 0, 5):
        queue.add(a_job(tmp_path, priority=priority))
    assert [job.id for job in work(queue) if job.state == "running"] == [3, 1, 2]
    assert {job.state for job in queue.jobs()} == {"done"}


def test_a_job_waits_for_the_one_it_is_behind_and_does_not_begin_if_that_fails(
    queue: Queue, tmp_path: Path
) -> None:
    queue.add(a_job(tmp_path, "raise SystemExit('error: no image')"))
    queue.add(a_job(tmp_path, after=1, priority=9))
    queue.add(a_job(tmp_path))
    work(queue)
    assert [job.state for job in queue.jobs()] == ["failed", "queued", "done"]
    assert queue.job(1).reason == "error: no image"
    with pytest.raises(StudioError, match="there is no job 9"):
        queue.add(a_job(tmp_path, after=9))


def test_what_a_job_prints_is_kept_and_each_has_a_process_of_its_own(queue: Queue, tmp_path: Path) -> None:
    code = "import os; print(os.getpid(), os.getppid(), os.environ['CUDA_VISIBLE_DEVICES'])"
    for _ in range(2):
        queue.add(a_job(tmp_path, code))
    work(queue)
    told = [queue.log(number).read_text().split(" ") for number in (1, 2)]
    assert told[0][0] != told[1][0] and {one[1] for one in told} == {str(os.getpid())}
    assert {one[2] for one in told} == {"\n"}


def test_a_job_that_is_stopped_is_told_so_and_goes_on_when_resumed(queue: Queue, tmp_path: Path) -> None:
    code = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))\n"
        "again = pathlib.Path('begun').exists()\n"
        "pathlib.Path('begun').write_text('')\n"
        "time.sleep(0 if again else 60)"
    )
    queue.add(a_job(tmp_path, code))
    changes: list[Job] = []

    def stop_it(job: Job) -> None:
        changes.append(job)
        if job.state == "running":
            while not (tmp_path / "begun").exists():
                pass
            queue.stop(1)

    python = lambda job: [sys.executable, "-S", "-E", *job.arguments]  # noqa: E731
    Worker(queue, [CPU], command=python, on_change=stop_it).work(until_empty=True)
    assert [job.state for job in changes] == ["running", "stopped"]
    queue.resume(1)
    work(queue)
    assert queue.job(1).state == "done" and queue.job(1).tries == 2


def test_a_job_whose_worker_was_killed_is_lost_and_not_before_its_process_ends(
    queue: Queue, tmp_path: Path
) -> None:
    queue.add(a_job(tmp_path))
    taken = queue.take("a worker", CPU)
    assert taken is not None and queue.take("another", CPU) is None
    assert queue.job(1).state == "running"
    os.close(taken[1])  # as the system does when its process ends
    assert queue.job(1).state == "lost"
    assert queue.resume(1).state == "queued"


def test_what_does_not_fit_a_state_is_refused(queue: Queue, tmp_path: Path) -> None:
    queue.add(a_job(tmp_path))
    queue.add(a_job(tmp_path, after=1))
    with pytest.raises(StudioError, match="job 1 is queued; only stopped, failed, lost ones can be resumed"):
        queue.resume(1)
    with pytest.raises(StudioError, match="job 2 waits for job 1"):
        queue.remove(1)
    queue.remove(2)
    assert queue.stop(1).state == "stopped"
    with pytest.raises(StudioError, match="job 1 is stopped; only one that is queued or running"):
        queue.stop(1)
    queue.remove(1)
    assert queue.jobs() == []
    assert queue.add(a_job(tmp_path)).id == 3  # no number comes again


def test_a_folder_or_recipe_that_is_gone_fails_its_job_alone(queue: Queue, tmp_path: Path) -> None:
    recipe = tmp_path / "one.toml"
    recipe.write_text("name = 'one'")
    queue.add(Job(("-c", "pass"), str(tmp_path / "gone")))
    queue.add(a_job(tmp_path, recipe=str(tmp_path / "none.toml"), recipe_sha256="0"))
    queue.add(a_job(tmp_path, recipe=str(recipe), recipe_sha256="0"))
    queue.add(a_job(tmp_path))
    work(queue)
    assert [job.state for job in queue.jobs()] == ["failed", "failed", "failed", "done"]
    reasons = [job.reason for job in queue.jobs()]
    assert "No such file or directory" in reasons[0]
    assert "is not there any more" in reasons[1] and "was changed since the job was added" in reasons[2]


def test_a_damaged_or_newer_file_is_one_sentence_and_stays(queue: Queue, tmp_path: Path) -> None:
    queue.add(a_job(tmp_path))
    with sqlite3.connect(queue.path) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(StudioError, match="is of a newer LoRA Studio"):
        queue.jobs()
    for path in queue.folder.glob("queue.sqlite3*"):
        path.write_bytes(b"no database at all, " * 500)
    with pytest.raises(StudioError, match=r"cannot be used \(file is not a database"):
        queue.jobs()
    assert queue.path.read_bytes().startswith(b"no database")


def test_a_recipe_is_checked_when_it_is_added_and_a_run_folder_belongs_to_one_job(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    recipe = tmp_path / "mine.toml"
    recipe.write_text("name = 'mine'\n[base]\nmodel = 'pocket'\n[data]\nimages = 'images'\n")
    job = queue.add(job_of("mine.toml", (), ("training.steps=3",), None))
    assert job.run == str(tmp_path / "runs/mine")
    assert job.arguments == ("train", str(recipe), "--out", job.run, "--set", "training.steps=3")
    with pytest.raises(StudioError, match=r"job 1 \(queued\) has the run folder"):
        queue.add(job_of("mine.toml", (), (), None))
    with pytest.raises(RecipeError, match=r"training\.stepps"):
        job_of("mine.toml", (), ("training.stepps=3",), None)
    with pytest.raises(RecipeError, match="--resume is no option of a training"):
        job_of("mine.toml", ("--resume",), (), None)
    assert job_of("verify", ("one.safetensors",), (), None).arguments == ("verify", "one.safetensors")


@pytest.mark.parametrize(
    ("words", "fault"),
    [("gpu", "--devices has 'gpu'"), ("cuda:0,cuda:0", "twice"), ("cuda", "--devices has 'cuda'")],
)
def test_devices_that_are_none_are_refused(words: str, fault: str) -> None:
    assert devices_named("cuda:1, cpu") == ["cuda:1", CPU]
    with pytest.raises(RecipeError, match=fault):
        devices_named(words)

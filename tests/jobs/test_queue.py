"""The queue's promises, one by one."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lora_studio.console import Screen
from lora_studio.console.jobs import print_job, print_jobs
from lora_studio.errors import RecipeError, StudioError
from lora_studio.jobs import Job, Queue
from lora_studio.jobs.adding import job_of
from lora_studio.jobs.worker import CPU, Worker, devices_named
from lora_studio.web.work import begin_work


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path / "queue")


def a_job(tmp_path: Path, code: str = "pass", **values: object) -> Job:
    return replace(Job(("-c", code), str(tmp_path)), **values)


def python(job: Job) -> list[str]:
    return [sys.executable, "-S", "-E", *job.arguments]


def work(queue: Queue) -> list[Job]:
    """Until it is empty; every change that was told."""
    changes: list[Job] = []
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
    assert queue.job(1).reason == "no image"
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
    [
        ("gpu", "--devices has 'gpu'"),
        ("cuda:0,cuda:0", "twice"),
        ("cuda", "--devices has 'cuda'"),
        ("cuda:2", "cuda:2, which is not there; this machine has cuda:0, cuda:1"),
    ],
)
def test_devices_that_are_none_are_refused(words: str, fault: str) -> None:
    two = lambda: ["cuda:0", "cuda:1"]  # noqa: E731
    assert devices_named("cuda:1, cpu", two) == ["cuda:1", CPU]
    assert devices_named("", two) == two()
    with pytest.raises(RecipeError, match=fault):
        devices_named(words, two)


def test_a_gpu_has_one_job_at_a_time_whatever_the_number_of_workers(queue: Queue, tmp_path: Path) -> None:
    """Also that of a worker that was killed: its job holds the GPU until it ends."""
    code = (
        "import os, pathlib, time\n"
        "pathlib.Path('gpu').mkdir()\n"
        "time.sleep(0.1)\n"
        "pathlib.Path('gpu').rmdir()\n"
        "print(os.environ['CUDA_VISIBLE_DEVICES'])"
    )
    for _ in range(4):
        queue.add(a_job(tmp_path, code))
    workers = [Worker(queue, ["cuda:0"], command=python) for _ in range(2)]
    threads = [threading.Thread(target=one.work, kwargs={"until_empty": True}) for one in workers]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert [(job.state, job.reason) for job in queue.jobs()] == [("done", "")] * 4
    assert {queue.log(number).read_text() for number in range(1, 5)} == {"0\n"}


def test_a_job_sees_the_gpu_that_its_worker_means(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was given the third and the fourth one calls them the first and the second."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    queue.add(a_job(tmp_path, "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"))
    Worker(queue, ["cuda:1"], command=python).work(until_empty=True)
    assert queue.log(1).read_text() == "3\n"


def test_a_queue_that_cannot_be_written_for_a_while_loses_no_job(queue: Queue, tmp_path: Path) -> None:
    """As on a full disk: sqlite's own limit on the size of its file stands in for it."""
    queue.add(a_job(tmp_path))
    with sqlite3.connect(queue.path) as database:
        database.execute(
            "CREATE TRIGGER full BEFORE UPDATE ON jobs BEGIN SELECT RAISE(ABORT, 'disk is full'); END"
        )
    with pytest.raises(StudioError, match="disk is full"):
        queue.take("a worker", CPU)
    with sqlite3.connect(queue.path) as database:
        database.execute("DROP TRIGGER full")
    assert [job.state for job in work(queue) if job.state != "running"] == ["done"]  # its lock was given back


@pytest.mark.parametrize("number", [0, -1, 2**63, 10**30])
def test_a_number_that_no_job_has_is_a_sentence(queue: Queue, tmp_path: Path, number: int) -> None:
    queue.add(a_job(tmp_path))
    with pytest.raises(StudioError, match=r"there is no job|at most 18 digits"):
        queue.job(number)
    with pytest.raises(StudioError, match=r"there is no job|at most 18 digits"):
        queue.add(a_job(tmp_path, after=number))
    assert [job.id for job in queue.jobs()] == [1]


def test_a_folder_whose_name_is_no_text_is_a_sentence(queue: Queue, tmp_path: Path) -> None:
    with pytest.raises(StudioError, match="no UTF-8 text"):
        queue.add(Job(("-c", "pass"), str(tmp_path / os.fsdecode(b"caf\xe9"))))
    assert queue.jobs() == []


def test_a_home_that_is_no_folder_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for act in (lambda queue: queue.add(a_job(tmp_path)), lambda queue: queue.lock("cuda")):
        with pytest.raises(StudioError, match="set LORA_STUDIO_HOME to a folder of yours"):
            act(Queue(tmp_path / "file" / "queue"))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_without_locks_is_refused(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl", reason="of Windows all disks have locks")
    queue.add(a_job(tmp_path))
    monkeypatch.setattr(fcntl, "flock", raising(OSError(errno.ENOLCK, "No locks available")))
    with pytest.raises(StudioError, match="has no locks"):
        queue.take("a worker", CPU)


def test_a_job_that_has_just_ended_is_not_stopped(queue: Queue, tmp_path: Path) -> None:
    queue.add(a_job(tmp_path))
    taken = queue.take("a worker", CPU)
    assert taken is not None
    assert queue.stop(1).state == queue.stop(1).state == "stopping"
    assert queue.ended(1, "done", "").state == "done"  # it had ended before it heard of that
    os.close(taken[1])
    with pytest.raises(StudioError, match="job 1 is done; only one that is queued or running"):
        queue.stop(1)


def test_a_clock_that_goes_backwards_changes_nothing(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    queue.add(a_job(tmp_path))
    taken = queue.take("a worker", CPU)
    assert taken is not None
    queue.beat(1, 7)
    now -= 10_000
    print_job(queue.job(1), queue.log(1), Screen(file=sys.stdout))
    assert "last seen 0 s ago" in capsys.readouterr().out
    queue.ended(1, "done", "")
    os.close(taken[1])
    assert [state for _, _, state, _ in queue.history()] == ["queued", "running", "done"]


def test_the_list_says_why_a_job_waits_and_names_steer_nothing(
    queue: Queue, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queue.add(a_job(tmp_path, "raise SystemExit('error: \x1b[31m no [/] image')"))
    queue.add(a_job(tmp_path, after=1, run="runs/[/red]\x1b]0;title\x07"))
    work(queue)
    print_jobs(queue.jobs(), Screen(file=sys.stdout, width=200))
    told = capsys.readouterr().out
    assert "behind job 1, which is failed: it waits until that is resumed" in told
    assert "\x1b" not in told and "runs/[/red]" in told and "no [/] image" in told


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM to be caught")
def test_a_signal_to_the_worker_stops_its_jobs_behind_checkpoints(queue: Queue, tmp_path: Path) -> None:
    code = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))\n"
        "pathlib.Path('begun').write_text('')\n"
        "time.sleep(60)"
    )
    queue.add(a_job(tmp_path, code))
    told: list[str] = []

    def ask(job: Job) -> None:
        while job.state == "running" and not (tmp_path / "begun").exists():
            time.sleep(0.01)
        if job.state == "running":
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        Worker(queue, [CPU], command=python, on_change=ask, on_stop=lambda: told.append("stopping")).work(
            until_empty=True
        )
    assert (queue.job(1).state, told) == ("stopped", ["stopping"])
    assert signal.getsignal(signal.SIGTERM) == before


def test_other_verbs_keep_what_is_typed_behind_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = job_of("regularization-images", ("mine.toml",), ("base.model=pocket",), Path("out"))
    assert job.arguments == (
        "regularization-images",
        "mine.toml",
        "--set",
        "base.model=pocket",
        "--out",
        "out",
    )
    (tmp_path / "images").mkdir()
    (tmp_path / "mine.toml").write_text("name = 'm'\n[base]\nmodel = 'pocket'\n[data]\nimages = 'images'\n")
    assert job_of("train", ("mine.toml",), (), None) == job_of("mine.toml", (), (), None)


def raising(error: Exception) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


def test_a_worker_is_in_sight_as_long_as_it_lives(queue: Queue) -> None:
    """So that the page starts none beside one that only waits."""
    waits = "import sys, time; from lora_studio.jobs import Queue; from pathlib import Path\n"
    waits += "with Queue(Path(sys.argv[1])).in_sight('a host:1'):\n print(flush=True); time.sleep(600)"
    command = [sys.executable, "-c", waits, str(queue.folder)]
    assert not queue.has_worker()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None and worker.stdout.readline()
        assert queue.has_worker() and not begin_work(queue, [Job((), "", id=1)])
        worker.kill()
        worker.wait()
        assert not queue.has_worker()
    with queue.in_sight("b"):
        assert queue.has_worker()
    assert not queue.has_worker() and not [*queue.folder.glob("jobs/worker*")]

"""Two runs in one folder: the second is told who is there, and what died there is no hindrance."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import recipe_text

from lora_studio.errors import StudioError
from lora_studio.recipe.load import load_recipe
from lora_studio.runs import ReadOnlyRun, Run
from lora_studio.runs.lock import LOCK
from lora_studio.training.events import Event, Note
from lora_studio.training.finish import Finished
from lora_studio.training.session import train

# takes the lock, says so, writes checkpoints and metrics, and keeps it until its input ends
WORK = """
import sys
from pathlib import Path
from lora_studio.errors import StudioError
from lora_studio.runs import Run
run = Run(Path(sys.argv[1]))
try:
    run.lock()
except StudioError as error:
    print("refused", error, flush=True)
    raise SystemExit
for step in range(1, 40):
    run.checkpoint(step, {"adapters.safetensors": 200_000 * sys.argv[2].encode()}, keep=3)
    run.metric({"step": step, "loss": 0.5, "learning_rate": 0.1, "by": sys.argv[2]})
print("held", flush=True)
sys.stdin.read()
run.close()
run.unlock()
"""
Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """A process of its own that trains in the folder."""
    started: list[subprocess.Popen[str]] = []

    def begin(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WORK, str(folder), name]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def killed(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
    process.wait()


def test_of_processes_that_begin_together_one_trains_and_the_others_say_who(
    folder: Path, start: Start
) -> None:
    """Without a lock each removed the other's unfinished checkpoint, and metrics were a mix of both."""
    processes = [start(name) for name in "ab"]
    words = [said(one) for one in processes]
    assert sorted(one.split()[0] for one in words) == ["held", "refused"]
    holder = processes[words.index("held")]
    (refused,) = [one for one in words if one != "held"]
    assert f"in use by process {holder.pid} on" in refused and "--out" in refused
    assert {row["by"] for row in Run(folder).metrics()} == {"ab"[words.index("held")]}
    assert len(Run(folder).metrics()) == 39


def test_what_was_killed_is_taken_over_and_what_ended_leaves_nothing(folder: Path, start: Start) -> None:
    first = start("a")
    assert said(first) == "held"
    killed(first)
    assert (folder / LOCK).exists()
    left = (run := Run(folder)).lock()
    assert left is not None and left.pid == first.pid
    run.unlock()
    assert not (folder / LOCK).exists()
    assert run.lock() is None
    run.unlock()


def test_a_folder_that_was_made_for_the_lock_alone_goes_with_it(tmp_path: Path) -> None:
    run = Run(tmp_path / "runs" / "x")
    run.lock()
    run.unlock()
    assert not (tmp_path / "runs").exists()
    run.lock()
    run.text("recipe.toml", "")
    run.unlock()
    assert [path.name for path in run.folder.iterdir()] == ["recipe.toml"]


def test_another_machine_is_named_with_what_to_do(folder: Path) -> None:
    holder = {"pid": 7, "host": "elsewhere", "since": "2026-01-01T00:00:00+00:00", "process_started": 0.0}
    folder.mkdir()
    (folder / LOCK).write_text(json.dumps(holder))
    with pytest.raises(
        StudioError, match=r"process 7 on elsewhere, since 2026.* delete .*lock\.json"
    ) as told:
        Run(folder).lock()
    assert str(told.value).count(". ") == 0
    (folder / LOCK).unlink()
    assert Run(folder).lock() is None


def test_a_damaged_lock_is_no_hindrance(folder: Path) -> None:
    folder.mkdir()
    (folder / LOCK).write_bytes(b"\xff{")
    run = Run(folder)
    assert run.lock() is None
    with pytest.raises(StudioError, match=f"process {os.getpid()} on"):
        Run(folder).lock()
    run.unlock()


class FakeWindows:
    """`msvcrt.locking`, between the descriptors of one process."""

    LK_NBLCK = 2

    def __init__(self) -> None:
        self.locked: set[tuple[int, int]] = set()

    def locking(self, descriptor: int, mode: int, num_bytes: int) -> None:
        assert (mode, num_bytes) == (self.LK_NBLCK, 1)
        place = os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR)
        if place in self.locked:
            raise OSError(36, "Resource deadlock avoided")
        self.locked.add(place)


def test_windows_locks_a_byte_behind_what_is_to_be_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", FakeWindows())
    run = Run(folder)
    run.lock()
    with pytest.raises(StudioError, match=f"process {os.getpid()} on"):
        Run(folder).lock()
    run.unlock()
    assert not folder.exists()


def test_disks_without_locks_have_the_process_to_go_by(
    folder: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start("a")
    assert said(first) == "held"

    def flock(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setitem(sys.modules, "fcntl", SimpleNamespace(flock=flock, LOCK_EX=2, LOCK_NB=4))
    with pytest.raises(StudioError, match=f"process {first.pid} on"):
        Run(folder).lock()
    killed(first)
    run = Run(folder)
    assert run.lock() is not None
    run.unlock()


def test_a_resume_while_the_first_still_runs_is_one_sentence_and_looking_is_free(
    folder: Path, start: Start, tmp_path: Path, images: Path, tiny_base: Path
) -> None:
    (tmp_path / "r.toml").write_text(recipe_text(images, str(tiny_base), steps=2), "utf-8")
    recipe, heard = load_recipe(tmp_path / "r.toml"), list[Event]()
    first = start("a")
    assert said(first) == "held"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for resume in (True, False):
        with pytest.raises(StudioError, match=f"in use by process {first.pid} on .*; wait for it") as told:
            train(recipe, folder, resume=resume, on_event=heard.append)
        assert str(told.value).count(". ") == 0
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")} and not heard
    assert len(ReadOnlyRun(folder).metrics()) == 39
    killed(first)
    for path in (*Run(folder).checkpoints_folder.rglob("*.*"), folder / "metrics.jsonl"):
        path.unlink()  # so that another run may begin here
    for path in Run(folder).checkpoints():
        path.rmdir()
    result = train(recipe, folder, on_event=heard.append)
    assert isinstance(result, Finished) and not (folder / LOCK).exists()
    assert isinstance(heard[0], Note) and f"process {first.pid}" in heard[0].text

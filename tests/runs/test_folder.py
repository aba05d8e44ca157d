"""The run folder: nothing half-written, nothing good removed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_studio.errors import CheckpointError, RunFolderError
from lora_studio.files import write_atomically
from lora_studio.runs import PIN, Run
from lora_studio.runs.reading import inputs_before


def save(text: str) -> dict[str, bytes]:
    return {"state.json": text.encode()}


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_checkpoint_that_fails_leaves_the_good_ones_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    run = Run(tmp_path)
    run.checkpoint(1, save("one"), keep=1)

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, refuse)
        with pytest.raises(RunFolderError, match=r"cannot be written to \(No space left on device\)"):
            run.checkpoint(2, save("two"), keep=1)
    assert [path.name for path in run.checkpoints_folder.iterdir()] == ["step_000001"]
    assert (run.newest_checkpoint() / "state.json").read_text() == "one"
    run.checkpoint(2, save("two"), keep=1)
    assert (run.newest_checkpoint() / "state.json").read_text() == "two"


def test_what_a_killed_save_left_behind_is_no_checkpoint_and_not_in_the_way(tmp_path: Path) -> None:
    run = Run(tmp_path)
    half = run.checkpoints_folder / ".step_000002.tmp"
    half.mkdir(parents=True)
    (half / "state.json").write_text("half")
    assert run.checkpoints() == []
    run.checkpoint(2, save("two"), keep=1)
    assert [path.name for path in run.checkpoints_folder.iterdir()] == ["step_000002"]


def test_a_half_written_file_of_a_killed_start_is_removed_and_nothing_else(tmp_path: Path) -> None:
    run = Run(tmp_path)
    good = run.text("previews/a.txt", "good")
    (tmp_path / "previews" / ".lora-studio-0123.tmp").write_text("half")
    (tmp_path / ".hidden.tmp").write_text("of somebody else")
    run.remove_left_overs()
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {good, tmp_path / ".hidden.tmp"}


def test_a_checkpoint_that_a_kill_left_half_made_goes_and_one_without_its_name_gets_it_back(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path)
    for step in (1, 2, 3):
        run.checkpoint(step, save(str(step)), keep=9)
    folders = run.checkpoints_folder
    (folders / "step_000001").rename(folders / ".step_000001.old")
    shutil.copytree(folders / "step_000002", folders / ".step_000002.old")
    for mine in (".step_000003.tmp", ".step_000004.tmp", ".step_mine.tmp", ".lora-studio-mine.tmp"):
        (folders / mine).mkdir()
    run.remove_left_overs()
    assert {one.name for one in folders.iterdir()} == {
        *("step_000001", "step_000002", "step_000003", ".step_mine.tmp", ".lora-studio-mine.tmp")
    }
    assert (folders / "step_000001" / "state.json").read_text() == "1"


def pipe(path: Path) -> None:
    os.mkfifo(path)


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10**12)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.skipif(os.name == "nt", reason="Windows has other kinds of files")
@pytest.mark.parametrize("make", [Path.mkdir, pipe, huge, loop, zeros])
@pytest.mark.parametrize("name", ["metrics.jsonl", "manifest.jsonl", "inputs.json"])
def test_what_is_no_file_or_never_ends_is_refused_by_name_and_not_waited_for(
    tmp_path: Path, make: Callable[[Path], None], name: str
) -> None:
    run = Run(tmp_path)
    make(tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{name} is not as the run wrote it"):
        if name == "inputs.json":
            inputs_before(tmp_path)
        elif name == "metrics.jsonl":
            run.metrics()
        else:
            run.lines(name)


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "previews" / "a.png").mkdir(parents=True)
    with pytest.raises(RunFolderError, match=r"cannot be written to at previews.a\.png \("):
        Run(tmp_path).file("previews/a.png", b"")


def test_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in range(1, 6):
        run.checkpoint(step, save(str(step)), keep=2)
    assert [path.name for path in run.checkpoints()] == ["step_000004", "step_000005"]


def test_the_best_and_the_pinned_checkpoints_stay_among_older_ones(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in range(1, 7):
        run.checkpoint(step, save(str(step)), keep=1, best=[3])
        if step == 2:
            (run.newest_checkpoint() / PIN).touch()
    assert [path.name for path in run.checkpoints()] == ["step_000002", "step_000003", "step_000006"]


def test_checkpoints_are_in_the_order_of_their_steps_beyond_six_digits(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (999_999, 1_000_000):
        run.checkpoint(step, save(str(step)), keep=2)
    assert run.newest_checkpoint().name == "step_1000000"


def test_resuming_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="start without --resume"):
        Run(tmp_path).newest_checkpoint()


def test_a_step_that_stands_there_twice_counts_once(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (1, 2, 1, 2):
        run.metric(row(step))
    run.close()
    assert run.metrics() == [row(1), row(2)]
    assert run.forget_after(2) == 2 and run.forget_after(2) == 0


def row(step: int, **more: object) -> dict[str, object]:
    return {"step": step, "loss": 0.5, "learning_rate": 1e-4, **more}


def test_metrics_after_the_checkpoint_are_forgotten_and_a_cut_line_is_skipped(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in range(1, 5):
        run.metric(row(step))
    run.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    assert run.forget_after(3) == 0
    run.metric(row(4, again=True))
    run.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [row(1), row(2), row(3), row(4, again=True)]


ODD_LINES = ("\udcff\udcfe", "[]", "17", "{}", '{"step": "x", "loss": 1, "learning_rate": 1}', "[" * 9999)
ODD_LINES += ('{"step": 2, "loss": "", "learning_rate": 1}', '{"step": 2, "loss": 1}', '{"step": -1')
ODD_LINES += (f'{{"step": 2, "loss": {10**400}, "learning_rate": 1}}', '{"step": true, "loss": 1}')


@pytest.mark.parametrize("odd", ODD_LINES, ids=range(len(ODD_LINES)))
def test_a_line_of_measurements_that_is_damaged_is_passed_over_and_counted(tmp_path: Path, odd: str) -> None:
    run = Run(tmp_path)
    lines = [json.dumps(row(1)), odd, json.dumps(row(2))]
    (tmp_path / "metrics.jsonl").write_bytes("\n".join([*lines, ""]).encode("utf-8", "surrogateescape"))
    assert run.metrics() == [row(1), row(2)]
    assert run.forget_after(2) == 1 and run.forget_after(2) == 0
    assert run.metrics() == [row(1), row(2)]


@pytest.mark.parametrize(
    "name", ["step_000002 (copy)", "step_backup", "step_\u00b2", "step_2", "step_0000002"]
)
def test_what_only_looks_like_a_checkpoint_is_none_and_stays(tmp_path: Path, name: str) -> None:
    run = Run(tmp_path)
    for step in (1, 2):
        run.checkpoint(step, save(str(step)), keep=2)
    (run.checkpoints_folder / name).mkdir()
    (run.checkpoints_folder / "step_000009").write_text("a file")
    assert [path.name for path in run.checkpoints()] == ["step_000001", "step_000002"]
    run.checkpoint(3, save("3"), keep=1)
    assert [path.name for path in run.checkpoints()] == ["step_000003"]
    assert (run.checkpoints_folder / name).is_dir()


def delete(folder: Path) -> None:
    shutil.rmtree(folder)


def move(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))


def empty(folder: Path) -> None:
    for path in list(folder.iterdir()):
        path.unlink()


def replace(folder: Path) -> None:
    move(folder)
    folder.mkdir()


@pytest.mark.skipif(os.name == "nt", reason="Windows lets nobody take away what is open")
@pytest.mark.parametrize("harm", [delete, move, empty, replace])
@pytest.mark.parametrize(
    "write",
    [
        lambda run: run.metric(row(2)),
        lambda run: run.text("a.txt", "a"),
        lambda run: run.append("validation.jsonl", row(2)),
        lambda run: run.checkpoint(2, save("two"), keep=1),
    ],
    ids=["metric", "text", "append", "checkpoint"],
)
def test_a_folder_that_is_taken_away_is_noticed_at_the_next_write(
    tmp_path: Path, harm: Callable[[Path], None], write: Callable[[Run], object]
) -> None:
    run = Run(tmp_path / "run")
    run.lock()
    run.metric(row(1))
    harm(run.folder)
    left = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunFolderError, match="was deleted, moved or emptied while the run needed it"):
        write(run)
    assert sorted(tmp_path.rglob("*")) == left
    run.close()
    run.unlock()


def test_an_atomic_write_leaves_no_other_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.txt", b"one")
    write_atomically(tmp_path / "a.txt", b"two")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.txt", b"two")]

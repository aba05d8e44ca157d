"""The run folder: nothing half-written, nothing good removed."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from lora_studio.errors import CheckpointError, RunFolderError
from lora_studio.files import write_atomically
from lora_studio.runs import PIN, Run


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


def test_metrics_after_the_checkpoint_are_forgotten_and_a_cut_line_is_skipped(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in range(1, 5):
        run.metric({"step": step})
    run.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    run.forget_after(3)
    run.metric({"step": 4, "again": True})
    run.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1}, {"step": 2}, {"step": 3}, {"step": 4, "again": True}]


def test_an_atomic_write_leaves_no_other_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.txt", b"one")
    write_atomically(tmp_path / "a.txt", b"two")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.txt", b"two")]

"""The run folder: nothing half-written, nothing good removed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_studio.errors import CheckpointError
from lora_studio.run import Run, write_atomically


def save(text: str):  # type: ignore[no-untyped-def]
    return lambda folder: (folder / "state.json").write_text(text)


def test_a_failed_checkpoint_leaves_the_good_ones_and_gets_no_name(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.checkpoint(1, save("one"), keep=2)

    def fail(folder: Path) -> None:
        (folder / "state.json").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run.checkpoint(2, fail, keep=2)
    assert [path.name for path in run.checkpoints()] == ["step_000001"]
    run.checkpoint(2, save("two"), keep=2)  # what the failed one left behind does not get in the way
    assert (run.newest_checkpoint() / "state.json").read_text() == "two"


def test_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in range(1, 6):
        run.checkpoint(step, save(str(step)), keep=2)
    assert [path.name for path in run.checkpoints()] == ["step_000004", "step_000005"]


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
    run.forget_metrics_after(3)
    run.metric({"step": 4, "again": True})
    run.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1}, {"step": 2}, {"step": 3}, {"step": 4, "again": True}]


def test_an_atomic_write_leaves_no_other_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.txt", b"one")
    write_atomically(tmp_path / "a.txt", b"two")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.txt", b"two")]

"""Resume equals never having stopped: after a checkpoint, after Ctrl-C and after SIGKILL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lora_studio.errors import CheckpointError, RecipeError, StudioError
from lora_studio.recipe import load_recipe
from lora_studio.training.session import Finished, train

LONGER = ("training.steps=12",)


def start(recipe_file: Path, folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lora_studio", "train", str(recipe_file), "--out", str(folder), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Until metrics.jsonl holds the step; fails when the run ends before."""
    metrics = folder / "metrics.jsonl"
    for _ in range(2400):
        if metrics.is_file() and len(metrics.read_text().splitlines()) >= step:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    raise AssertionError(f"no step {step} after two minutes")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, recipe_file: Path) -> bytes:
    """The file of twelve steps in one go, in a process of its own like the others: the number of threads,
    which a test before may have changed in this one, is part of "the same machine"."""
    folder = tmp_path_factory.mktemp("long") / "run"
    process = start(recipe_file, folder, "--set", LONGER[0])
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return (folder / "tiny.safetensors").read_bytes()


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGKILL, marks=pytest.mark.slow), signal.SIGINT]
)  # test_exact.py kills, too
def test_a_stopped_run_resumes_to_the_same_bytes(
    tmp_path: Path, recipe_file: Path, straight: bytes, number: signal.Signals
) -> None:
    folder = tmp_path / "run"
    process = start(recipe_file, folder, "--set", LONGER[0])
    wait_for_step(folder, 5, process)
    os.kill(process.pid, number)
    output, _ = process.communicate()
    if number == signal.SIGINT:
        assert process.returncode == 130 and "--resume" in output
    assert not (folder / "tiny.safetensors").exists()
    again = start(recipe_file, folder, "--set", LONGER[0], "--resume")
    output, _ = again.communicate()
    assert again.returncode == 0, output
    assert (folder / "tiny.safetensors").read_bytes() == straight
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 13))


@pytest.mark.slow
def test_a_second_resume_counts_steps_from_the_beginning(
    tmp_path: Path, recipe_file: Path, straight: bytes
) -> None:
    folder = tmp_path / "run"
    for stop_at in (3, 7):
        options = ("--set", LONGER[0], *(("--resume",) if stop_at > 3 else ()))
        process = start(recipe_file, folder, *options)
        wait_for_step(folder, stop_at, process)
        process.kill()
        process.communicate()
    last = start(recipe_file, folder, "--set", LONGER[0], "--resume")
    output, _ = last.communicate()
    assert last.returncode == 0, output
    assert (folder / "tiny.safetensors").read_bytes() == straight


def test_a_changed_recipe_is_not_resumed_and_the_differences_are_listed(
    finished: Finished, recipe_file: Path
) -> None:
    changed = load_recipe(recipe_file, changes=("adapter.rank=8", "training.learning_rate=0.5"))
    with pytest.raises(RecipeError) as caught:
        train(changed, finished.folder, resume=True)
    assert "adapter.rank: 4 -> 8" in str(caught.value) and "training.learning_rate: 0.001 -> 0.5" in str(
        caught.value
    )


def test_a_folder_with_a_run_is_not_trained_over(finished: Finished, recipe_file: Path) -> None:
    before = finished.lora_file.read_bytes()
    with pytest.raises(StudioError, match="already holds a run"):
        train(load_recipe(recipe_file), finished.folder)
    assert finished.lora_file.read_bytes() == before


def test_resuming_nothing_is_refused(tmp_path: Path, recipe_file: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        train(load_recipe(recipe_file), tmp_path / "none", resume=True)


def test_a_damaged_checkpoint_is_named(tmp_path: Path, recipe_file: Path) -> None:
    folder = tmp_path / "run"
    train(load_recipe(recipe_file), folder)
    damaged = folder / "checkpoints" / "step_000004" / "adapters.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="step_000004 cannot be read"):
        train(load_recipe(recipe_file), folder, resume=True)

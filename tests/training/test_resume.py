"""Resume equals never having stopped: after a checkpoint, after Ctrl-C and after SIGKILL."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from earlier import without_digests
from processes import said, start_verb

from lora_studio.errors import CheckpointError, RecipeError, StudioError
from lora_studio.recipe.load import load_recipe
from lora_studio.runs import Run
from lora_studio.training.finish import Finished
from lora_studio.training.session import train

LONGER = ("--set", "training.steps=12")


def start(recipe_file: Path, folder: Path, *options: str) -> BaseProcess:
    return start_verb(folder, "train", str(recipe_file), "--out", str(folder), *LONGER, *options)


def end_of(process: BaseProcess, folder: Path) -> tuple[int | None, str]:
    """Its exit code, and what it printed."""
    process.join()
    return process.exitcode, said(folder)


def wait_for_step(folder: Path, step: int, process: BaseProcess) -> None:
    """Until metrics.jsonl holds the step; fails when the run ends before."""
    metrics = folder / "metrics.jsonl"
    for _ in range(2400):
        if metrics.is_file() and len(metrics.read_text().splitlines()) >= step:
            return
        assert process.is_alive(), said(folder)
        time.sleep(0.05)
    raise AssertionError(f"no step {step} after two minutes")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, recipe_file: Path) -> bytes:
    """The file of twelve steps in one go."""
    folder = tmp_path_factory.mktemp("long") / "run"
    code, output = end_of(start(recipe_file, folder), folder)
    assert code == 0, output
    return (folder / "tiny.safetensors").read_bytes()


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGKILL, marks=pytest.mark.slow), signal.SIGINT]
)  # test_exact.py kills, too
def test_a_stopped_run_resumes_to_the_same_bytes(
    tmp_path: Path, recipe_file: Path, straight: bytes, number: signal.Signals
) -> None:
    folder = tmp_path / "run"
    process = start(recipe_file, folder)
    wait_for_step(folder, 5, process)
    assert process.pid is not None
    os.kill(process.pid, number)
    code, output = end_of(process, folder)
    if number == signal.SIGINT:
        assert code == 130 and f"go on with: lora-studio train --resume {folder}" in output
    assert not (folder / "tiny.safetensors").exists()
    code, output = end_of(start_verb(folder, "train", "--resume", str(folder)), folder)
    assert code == 0, output
    assert (folder / "tiny.safetensors").read_bytes() == straight
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 13))


@pytest.mark.slow
def test_a_second_resume_counts_steps_from_the_beginning(
    tmp_path: Path, recipe_file: Path, straight: bytes
) -> None:
    folder = tmp_path / "run"
    for stop_at in (3, 7):
        process = start(recipe_file, folder, *(("--resume",) if stop_at > 3 else ()))
        wait_for_step(folder, stop_at, process)
        process.kill()
        process.join()
    code, output = end_of(start(recipe_file, folder, "--resume"), folder)
    assert code == 0, output
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


def test_a_run_goes_on_with_the_learning_rates_that_it_began_with(tmp_path: Path, recipe_file: Path) -> None:
    """Linear used to reach 0 in the last step; runs of that time have no word of its end in inputs.json."""
    recipe = load_recipe(recipe_file, changes=("training.lr_schedule=linear", "samples.prompts=[]"))

    def resumed(folder: Path) -> list[float]:
        shutil.rmtree(folder / "checkpoints" / "step_000004")
        train(recipe, folder, resume=True)
        return [row["learning_rate"] / 1e-3 for row in Run(folder).metrics()]

    train(recipe, tmp_path / "now")
    straight = (tmp_path / "now" / "tiny.safetensors").read_bytes()
    shutil.copytree(tmp_path / "now", old := tmp_path / "then")
    assert resumed(tmp_path / "now") == pytest.approx([1, 1, 2 / 3, 1 / 3])
    assert (tmp_path / "now" / "tiny.safetensors").read_bytes() == straight
    without_digests(old)
    inputs = json.loads((old / "inputs.json").read_text())
    inputs.pop("training.lr_schedule")
    (old / "inputs.json").write_text(json.dumps(inputs))
    for _ in range(2):  # and so it does the next time
        assert resumed(old)[2:] == pytest.approx([1 / 3, 0])

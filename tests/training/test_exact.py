"""With everything on, a run that was stopped, killed or refused the disk ends like one that was not."""

from __future__ import annotations

import json
import random
import re
import signal
import time
from pathlib import Path

import processes
import pytest
from tiny import image_folder, recipe_text

from lora_studio.runs import Run
from lora_studio.training.optimizers import SCHEDULES, factor

STEPS = 6
EVERYTHING = """
gradient_accumulation = 2
ema = 0.9
keep_checkpoints = 1
[validation]
count = 2
every = 2
[samples]
prompts = ["a red ball, zwx style"]
steps = 1
every = 3
"""


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A recipe of six steps with gradient accumulation, a mean of the weights, validation and previews."""
    folder = tmp_path_factory.mktemp("everything")
    image_folder(folder / "images", count=6)
    text = recipe_text(folder / "images", str(tiny_base), steps=STEPS, extra=EVERYTHING)
    (folder / "recipe.toml").write_text(text.replace("resolution = 64", "resolution = 32"), "utf-8")
    return folder / "recipe.toml"


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, everything: Path) -> dict[str, object]:
    """What that recipe leaves behind in one go."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    outcome = processes.train(everything, folder)
    assert outcome.code == 0, outcome.said
    return left_behind(folder)


def left_behind(folder: Path) -> dict[str, object]:
    """All that does not depend on the clock."""
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in Run(folder).metrics()]
    names = ["tiny.safetensors", "validation.jsonl", "validation.json", "manifest.jsonl", "recipe.toml"]
    names += [f"previews/step_{step:06}.png" for step in (0, 3, 6)]
    last = f"checkpoints/step_{STEPS:06}"
    names += [f"{last}/{name}" for name in ("adapters.safetensors", "ema.safetensors", "state.json")]
    return {name: (folder / name).read_bytes() for name in names} | {"metrics": rows}


def assert_same(folder: Path, straight: dict[str, object]) -> None:
    found = left_behind(folder)
    assert [name for name in straight if found[name] != straight[name]] == []
    assert not [path for path in folder.rglob("*") if path.name.endswith((".tmp", ".old"))]


def test_a_run_stopped_at_two_random_steps_ends_with_the_same_bytes(
    tmp_path: Path, everything: Path, straight: dict[str, object]
) -> None:
    folder, choice = tmp_path / "run", random.Random(1)
    for number, step in enumerate(sorted(choice.sample(range(1, STEPS), 2))):
        fault = processes.AtStep(step, processes.interrupt)
        outcome = processes.train(everything, folder, resume=number > 0, fault=fault)
        assert outcome.code == 130, outcome.said
        assert [path.name for path in Run(folder).checkpoints()][-1] == f"step_{step:06}"
        assert not (folder / "tiny.safetensors").exists()
    outcome = processes.train(everything, folder, resume=True)
    assert outcome.code == 0, outcome.said
    assert_same(folder, straight)


def kill_and_resume(everything: Path, folder: Path, choice: random.Random, kills: int) -> None:
    """Kill a training at so many random moments, each after a random step, and let it go on to its end."""
    for _ in range(kills):
        process = processes.start(everything, folder, resume=bool(Run(folder).checkpoints()))
        done, wanted = len(Run(folder).metrics()), choice.randint(1, STEPS)
        while process.is_alive() and len(Run(folder).metrics()) < max(done, wanted):
            time.sleep(0.005)
        time.sleep(choice.uniform(0, 0.5))
        process.kill()
        process.join()
        if Run(folder).checkpoints():
            newest = json.loads((Run(folder).newest_checkpoint() / "state.json").read_text())
            assert Run(folder).newest_checkpoint().name == f"step_{newest['step']:06}"
    outcome = processes.train(everything, folder, resume=bool(Run(folder).checkpoints()))
    assert outcome.code == 0, outcome.said


def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(
    tmp_path: Path, everything: Path, straight: dict[str, object]
) -> None:
    kill_and_resume(everything, tmp_path / "run", random.Random(2), kills=2)
    assert_same(tmp_path / "run", straight)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_twenty_runs_killed_at_random_moments_end_with_the_same_bytes(
    seed: int, tmp_path: Path, everything: Path, straight: dict[str, object]
) -> None:
    choice = random.Random(100 + seed)
    kill_and_resume(everything, tmp_path / "run", choice, kills=choice.randint(1, 3))
    assert_same(tmp_path / "run", straight)


def die_in_save(everything: Path, folder: Path, number: int) -> None:
    """Killed before the n-th durable write after step 3, which belong to its preview and step 4's save."""
    fault = processes.AtStep(3, processes.DieAtWrite(number))
    outcome = processes.train(everything, folder, fault=fault)
    assert outcome.code == -signal.SIGKILL, outcome.said
    found = [path.name for path in Run(folder).checkpoints()]
    assert found in (["step_000002"], ["step_000002", "step_000004"], ["step_000004"])
    outcome = processes.train(everything, folder, resume=True)
    assert outcome.code == 0, outcome.said


SAVE = range(5, 13)  # after two writes each of the preview's sheet and the ranking: of the checkpoint's files


@pytest.mark.slow
@pytest.mark.parametrize("number", random.Random(3).sample(SAVE, 1))
def test_a_run_killed_while_it_saves_ends_with_the_same_bytes(
    number: int, tmp_path: Path, everything: Path, straight: dict[str, object]
) -> None:
    die_in_save(everything, tmp_path / "run", number)
    assert_same(tmp_path / "run", straight)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 13))
def test_a_run_killed_at_any_write_ends_with_the_same_bytes(
    number: int, tmp_path: Path, everything: Path, straight: dict[str, object]
) -> None:
    die_in_save(everything, tmp_path / "run", number)
    assert_same(tmp_path / "run", straight)


@pytest.mark.parametrize("refusal", ["full", pytest.param("read-only", marks=pytest.mark.slow)])
def test_a_disk_that_refuses_is_one_sentence_and_the_run_goes_on_later(
    refusal: str, tmp_path: Path, everything: Path, straight: dict[str, object]
) -> None:
    folder = tmp_path / "run"
    checkpoints = folder / "checkpoints"
    harm, words = {
        "full": (processes.small_files_only, "File too large"),
        "read-only": (processes.ReadOnly(checkpoints), "Permission denied"),
    }[refusal]
    place = rf"{re.escape(str(folder))} cannot be written to( at checkpoints\S*)? \({words}\)"
    said = re.compile(f"error: the run folder {place}; the last good checkpoint is ")
    outcome = processes.train(everything, folder, fault=processes.AtStep(3, harm))
    checkpoints.chmod(0o755)
    assert outcome.code == 2
    assert said.search(outcome.said), outcome.said
    assert f"{checkpoints / 'step_000002'}; make room there, or make it writable" in outcome.said
    assert "Traceback" not in outcome.said
    assert [path.name for path in checkpoints.iterdir()] == ["step_000002"]
    outcome = processes.train(everything, folder, resume=True)
    assert outcome.code == 0, outcome.said
    assert_same(folder, straight)


def test_learning_rates_are_those_of_the_schedule_at_every_step(straight: dict[str, object]) -> None:
    """Of optimizer steps, not of micro-batches; that a resume changes none of them, the others see."""
    rows = straight["metrics"]
    expected = [
        1e-3 * factor(SCHEDULES["cosine"], step, steps=STEPS, warmup_steps=1) for step in range(1, STEPS + 1)
    ]
    assert [row["learning_rate"] for row in rows] == expected  # type: ignore[attr-defined]
    assert expected[-1] == pytest.approx(1e-4)

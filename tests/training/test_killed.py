"""Five recipes, killed at random moments or told to stop by any signal: resumed, the same bytes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from noise import grey_noise
from processes import said, start_verb
from tiny import image_folder, least_base, recipe_text

from lora_studio.runs import Run
from lora_studio.runs.lock import LOCK

STEPS, MOMENTS = 8, 8
LOOKED_AT = """
[validation]
count = 1
every = 3
[samples]
prompts = ["a red ball, zwx style"]
steps = 1
every = 4
"""
RECIPES = {
    "class images drawn, and preservation": (
        *("data.regularization_images.count=3", "data.regularization_images.steps=1"),
        *("data.class_words=ball", "objective.preservation=0.3"),
    ),
    "class images of a folder, and tokens": (
        *('tokens=[{token="zwx", start="red ball"}]', "data.regularization_images.images=CLASS"),
        *("data.class_words=ball", "training.batch_size=1"),
    ),
    "lokr with prodigy": (
        *("adapter.kind=lokr", "training.optimizer=prodigy", "training.learning_rate=1"),
        *("training.lr_schedule=constant", "training.warmup_steps=0"),
    ),
    "a mean of the weights, and accumulation": ("training.ema=0.9", "training.gradient_accumulation=3"),
    "the text encoder, too": ("adapter.text_encoder=true", "training.text_encoder_learning_rate=1e-4"),
}
SIGNALS = [getattr(signal, name) for name in ("SIGHUP", "SIGTERM", "SIGINT") if hasattr(signal, name)]
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Trained:
    """A recipe's run in one go."""

    home: Path
    options: tuple[str, ...]
    seconds: float

    @property
    def left(self) -> dict[str, object]:
        return left_behind(self.home / "straight")


@pytest.fixture(scope="module", params=RECIPES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    home = tmp_path_factory.mktemp("home")
    images = image_folder(home / "images", count=4)
    (home / "class").mkdir()
    for number in range(2):
        grey_noise((64, 64), 60 + number).convert("RGB").save(home / "class" / f"{number}.png")
        (home / "class" / f"{number}.txt").write_text("a ball", "utf-8")
    text = recipe_text(images, str(least_base(home / "base")), steps=STEPS, extra=LOOKED_AT)
    (home / "recipe.toml").write_text(text.replace("resolution = 64", "resolution = 32"), "utf-8")
    changes = (one.replace("CLASS", str(home / "class")) for one in RECIPES[request.param])
    options = tuple(part for change in changes for part in ("--set", change))
    began = time.monotonic()
    process = begin(home, home / "straight", options)
    process.join()
    assert process.exitcode == 0, said(home / "straight")
    return Trained(home, options, time.monotonic() - began)


def begin(home: Path, folder: Path, options: tuple[str, ...]) -> BaseProcess:
    """Train, or go on where there is a checkpoint; with a cache of its own, which kills meet, too."""
    if Run(folder).checkpoints():
        arguments = ["train", "--resume", str(folder)]
    else:
        arguments = ["train", str(home / "recipe.toml"), "--out", str(folder), *options]
    cache = {"LORA_STUDIO_CACHE": str(folder.with_name(f"{folder.name}_cache"))}
    return start_verb(folder, *arguments, environment=cache)


def left_behind(folder: Path) -> dict[str, object]:
    """All that decides how a run goes on or ends, and what does not depend on the clock."""
    names = [f"checkpoints/step_{STEPS:06}", "previews", "."]
    paths = [path for name in names for path in (folder / name).iterdir() if path.is_file()]
    found: dict[str, object] = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in paths
        if path.suffix in (".safetensors", ".png", ".toml") or path.name.startswith(("validation", "state"))
    }
    found["manifest"] = (folder / "manifest.jsonl").read_bytes()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return found | {"metrics": [{key: row[key] for key in row if key != "seconds"} for row in rows]}


def assert_goes_on(trained: Trained, folder: Path) -> None:
    """To the same bytes, and nothing half-written is left."""
    process = begin(trained.home, folder, trained.options)
    process.join()
    assert process.exitcode == 0, said(folder)
    found, wanted = left_behind(folder), trained.left
    assert [name for name in {*found, *wanted} if found.get(name) != wanted.get(name)] == []
    names = [path.name for path in folder.rglob("*")]
    assert not [name for name in names if name.endswith((".tmp", ".old")) or name == LOCK]


def stop(trained: Trained, folder: Path, number: int, draw: random.Random, *, first: int) -> int:
    """Send a signal at a random moment behind a random step, again if it came too late; the exit code."""
    step, share = draw.randint(first, STEPS - 2), draw.random()
    # of the whole: some steps; or where no step is waited for, until the first; or to the end
    seconds = share * trained.seconds * (0.01 if first else 0.6 if step == 0 else 0.15)
    while True:
        process = begin(trained.home, folder, trained.options)
        while process.is_alive() and len(Run(folder).metrics()) < step:
            time.sleep(0.002)
        time.sleep(seconds)
        assert process.pid is not None
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
        process.join()
        if process.exitcode != 0:
            assert process.exitcode in (-number, 130), f"{process.exitcode}: {said(folder)}"
            return process.exitcode
        shutil.rmtree(folder)
        seconds /= 2


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_a_run_killed_at_a_random_moment_ends_with_the_same_bytes(
    trained: Trained, tmp_path: Path, moment: int
) -> None:
    stop(trained, tmp_path / "run", signal.SIGKILL, random.Random(moment), first=0)
    assert_goes_on(trained, tmp_path / "run")


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_run_told_to_stop_leaves_a_checkpoint_and_ends_with_the_same_bytes(
    trained: Trained, tmp_path: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "run"
    assert stop(trained, folder, number, random.Random(number), first=1) == 130
    last = Run(folder).metrics()[-1]["step"]
    assert Run(folder).newest_checkpoint().name == f"step_{last:06}"
    assert f"go on with: lora-studio train --resume {folder}" in said(folder)
    assert not (folder / "tiny.safetensors").exists()
    assert_goes_on(trained, folder)

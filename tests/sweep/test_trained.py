"""Trials that are really trained: the runs that `train` makes, with images and captions encoded once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from console import run
from tiny import recipe_text

from lora_studio.evaluate import artist
from lora_studio.recipe.load import load_recipe
from lora_studio.sweep import plan_sweep
from lora_studio.sweep.folder import SweepFolder
from lora_studio.sweep.running import run_sweep
from lora_studio.training.events import Event, Progress
from lora_studio.training.session import train

ASKED = "[evaluate]\nprompts = 1\nseeds = 2\nencoder = 'pocket'\n[samples]\nsteps = 2\n"
SWEEP = "[sweep]\nvary = { 'adapter.rank' = [2, 4] }\n"


@pytest.fixture
def recipe(tmp_path: Path, images: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORA_STUDIO_CACHE", str(tmp_path / "cache"))
    text = recipe_text(images, str(tiny_base), steps=2, extra=ASKED + SWEEP)
    (tmp_path / "one.toml").write_text(text, "utf-8")
    return tmp_path / "one.toml"


def work_here(folder: SweepFolder) -> dict[str, list[Event]]:
    """As a worker does, but in this process, as another takes seconds to begin: what each trial told."""
    told = {}
    while taken := folder.queue.take("here", "cpu"):
        job, lock = taken
        events = told.setdefault(Path(job.run).name, [])
        train(load_recipe(job.recipe), Path(job.run), on_event=events.append)
        folder.queue.ended(job.id, "done", "")
        os.close(lock)
    return told


def test_trials_are_the_runs_of_train_and_share_caches_and_the_images_of_the_base(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, draw = list[str](), artist.draw_asked

    def noted(family, asked, *arguments, **named):
        drawn.extend(prompt for prompt, _ in asked)
        return draw(family, asked, *arguments, **named)

    monkeypatch.setattr(artist, "draw_asked", noted)
    plan, folder = plan_sweep(load_recipe(recipe)), SweepFolder(tmp_path / "sweep")
    folder.begin(plan)
    told = work_here(folder)
    encoded = {
        name: {one.what for one in events if isinstance(one, Progress)} & {"latents", "captions"}
        for name, events in told.items()
    }
    assert encoded == {"trial_001_seed_1": {"latents", "captions"}, "trial_002_seed_1": set()}
    assert len(drawn) == 3 * plan.drawn  # the base's once, and those of two trials
    result = run_sweep(plan, folder, devices=["cpu"])
    assert not result.unfinished and set(result.pooled) == {1, 2}
    assert result.pooled[1].measure("drift").interval.value > 0
    alone = train(load_recipe(recipe, changes=("adapter.rank=2",)), tmp_path / "alone")
    trial = folder.path / "trial_001_seed_1" / "tiny.safetensors"
    assert alone.lora_file.read_bytes() == trial.read_bytes()


@pytest.mark.slow
def test_the_verb_trains_in_processes_of_their_own_and_says_what_it_does(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    code, said, err = run(["sweep", str(recipe), "-o", str(out), "--seeds", "2"], capsys)
    assert code == 0, err
    assert "2 settings x 2 seeds" in said and "4 of 4 have ended" in said and "recommended" in said
    found = json.loads((out / "sweep.json").read_text("utf-8"))
    assert [one["state"] for one in found["trials"]] == ["done"] * 4 and found["recommended"]
    again, said, _ = run(["sweep", str(recipe), "-o", str(out), "--seeds", "2"], capsys)
    assert again == 0 and "running" not in said

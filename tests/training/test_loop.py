"""The loop's promises: the base stays as it is, and caches spare work."""

from __future__ import annotations

import itertools
import math
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
from tiny import SD15_LAYERS

from lora_studio.errors import Interrupted
from lora_studio.recipe.load import load_recipe
from lora_studio.runs import Run
from lora_studio.training.events import Event, Progress, StepDone, ignore_events
from lora_studio.training.optimizers import SCHEDULES, factor
from lora_studio.training.prepare import prepare
from lora_studio.training.session import train


def test_the_base_is_unchanged_by_training(tmp_path: Path, recipe_file: Path) -> None:
    session = prepare(load_recipe(recipe_file), Run(tmp_path), ignore_events)
    before = {layer.name: layer.module.get_base_layer().weight.clone() for layer in session.adapters.layers}
    session.loop.run(1)
    session.run.close()
    assert all(
        torch.equal(before[layer.name], layer.module.get_base_layer().weight)
        for layer in session.adapters.layers
    )
    assert any(layer.tensors["up"].any() for layer in session.adapters.layers)


def test_a_trained_text_encoder_learns_and_is_exported(tmp_path: Path, recipe_file: Path) -> None:
    changes = ("adapter.text_encoder=true", "training.text_encoder_learning_rate=1e-3", "training.steps=2")
    result = train(load_recipe(recipe_file, changes=changes), tmp_path / "run")
    layers = SD15_LAYERS + 3 * 6  # the UNet's, and the text encoder's
    assert result.report.checks["keys_mapped"] == f"{layers} of {layers}"  # type: ignore[union-attr]
    assert result.report.checks["layers_that_are_zero"] == 0  # type: ignore[union-attr]


def test_a_second_run_over_an_unchanged_folder_encodes_nothing(
    tmp_path: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORA_STUDIO_CACHE", str(tmp_path / "cache"))
    recipe = load_recipe(recipe_file)
    heard: list[list[Event]] = [[], []]
    for number in (0, 1):
        prepare(recipe, Run(tmp_path / str(number)), heard[number].append)
    encoded = [
        Counter(event.what for event in events if isinstance(event, Progress) and "images" not in event.what)
        for events in heard
    ]
    assert encoded[0] == {"latents": 5, "captions": 6}  # with the empty one
    assert not encoded[1]


@pytest.mark.parametrize(("name", "last"), [("cosine", 0.1), ("linear", 1 / 40), ("constant", 1.0)])
def test_schedules_warm_up_and_end_where_they_should(name: str, last: float) -> None:
    schedule = SCHEDULES[name]
    rates = [factor(schedule, step, steps=50, warmup_steps=10) for step in range(1, 51)]
    assert rates[:3] == [0.1, 0.2, 0.3] and rates[9] == 1.0
    assert rates[-1] == pytest.approx(last)
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))


@pytest.mark.parametrize("gradient_accumulation", [1, 4])
def test_every_step_has_its_learning_rate_whatever_the_accumulation_and_over_a_resume(
    gradient_accumulation: int, tmp_path: Path, recipe_file: Path
) -> None:
    changes = ("training.steps=5", "training.warmup_steps=2", "training.batch_size=1", "samples.prompts=[]")
    recipe = load_recipe(
        recipe_file, changes=(*changes, f"training.gradient_accumulation={gradient_accumulation}")
    )

    def interrupt(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted) as stopped:
        train(recipe, tmp_path / "run", on_event=interrupt)
    assert (stopped.value.folder, stopped.value.step) == (tmp_path / "run", 3)
    train(recipe, tmp_path / "run", resume=True)
    rows = Run(tmp_path / "run").metrics()
    shares = [1 / 2, 1, *(0.1 + 0.45 * (1 + math.cos(math.pi * done / 3)) for done in (1, 2, 3))]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["learning_rate"] for row in rows] == pytest.approx([1e-3 * share for share in shares])

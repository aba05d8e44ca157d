"""A listener that stops a run, and a recipe that is built in code."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import recipe_text

import lora_studio
from lora_studio.recipe.load import load_recipe
from lora_studio.training.events import Event, StepDone


@pytest.fixture
def recipe(tmp_path: Path, tiny_base: Path, images: Path) -> lora_studio.Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_text(images, str(tiny_base)))
    return load_recipe(path, set={"training": {"steps": 4, "checkpoint_every": 4}})


def test_a_listener_stops_a_run_that_then_ends_as_if_it_had_not(
    recipe: lora_studio.Recipe, tmp_path: Path
) -> None:
    seen: list[int] = []

    def hear(event: Event) -> None:
        if isinstance(event, StepDone):
            seen.append(event.step)
            if event.step == 2:
                raise lora_studio.StopTraining

    with pytest.raises(lora_studio.Interrupted) as caught:
        lora_studio.train(recipe, tmp_path / "stopped", on_event=hear)
    assert 2 <= caught.value.step < 4 and seen[:2] == [1, 2]
    resumed = lora_studio.train(recipe, tmp_path / "stopped", resume=True)
    whole = lora_studio.train(recipe, tmp_path / "whole")
    assert resumed.lora_file and whole.lora_file
    assert resumed.lora_file.read_bytes() == whole.lora_file.read_bytes()


def test_a_recipe_built_in_code_is_the_one_that_a_file_says(tmp_path: Path) -> None:
    built = lora_studio.Recipe(  # type: ignore[arg-type]
        name="mine", base={"model": "pocket"}, data={"images": tmp_path}, training={"steps": 3}
    )
    path = tmp_path / "mine.toml"
    path.write_text(
        f"name = 'mine'\nbase = {{ model = 'pocket' }}\ndata = {{ images = '{tmp_path}' }}\n"
        "training = { steps = 3 }\n"
    )
    assert built == lora_studio.load_recipe(path)

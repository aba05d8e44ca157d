"""training.epochs: as many steps as show every image that often, known when the images are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny import recipe_text

from lora_studio.data.batches import BatchPlan
from lora_studio.data.manifest import Bucket, Record
from lora_studio.errors import RecipeError
from lora_studio.recipe import Recipe
from lora_studio.recipe.load import load_recipe, recipe_from
from lora_studio.training.finish import Finished
from lora_studio.training.planning import plan
from lora_studio.training.session import to_toml, train


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_base: Path, images: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(recipe_text(images, str(tiny_base)).replace("steps = 4\n", "epochs = 2\n"), "utf-8")
    return path


@pytest.mark.parametrize("gradient_accumulation", [1, 3])
@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_the_steps_are_the_fewest_that_show_every_entry_so_often(
    epochs: int, gradient_accumulation: int
) -> None:
    sizes, repeats = [64, 64, 64, 64, 96, 96, 96], [1, 1, 2, 3, 1, 1, 4]
    records = [
        Record(path="", name=f"{number}", bucket=Bucket(64, side), repeats=often)
        for number, (side, often) in enumerate(zip(sizes, repeats, strict=True))
    ]
    batches = BatchPlan(records, batch_size=3, gradient_accumulation=gradient_accumulation, seed=1)
    steps = batches.steps_of(epochs)
    wanted = [epochs * often for often in repeats]
    assert all(seen >= often for seen, often in zip(batches.views_per_image(steps), wanted, strict=True))
    before = batches.views_per_image(steps - 1)
    assert any(seen < often for seen, often in zip(before, wanted, strict=True))


def test_a_part_of_an_epoch_is_a_part_of_its_batches_and_one_step_at_least() -> None:
    records = [Record(path="", name=f"{number}", bucket=Bucket(64, 64)) for number in range(30)]
    batches = BatchPlan(records, batch_size=1, gradient_accumulation=1, seed=1)
    assert [batches.steps_of(share) for share in (0.1, 0.5, 1.5, 0.001)] == [3, 15, 45, 1]


def values(**training: object) -> dict[str, object]:
    return {"name": "a", "base": {"model": "pocket"}, "data": {"images": "x"}, "training": training}


def test_steps_and_epochs_at_once_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"training\.steps and training\.epochs are both there; keep one"):
        recipe_from(values(steps=3, epochs=2), folder=tmp_path)
    assert recipe_from(values(), folder=tmp_path).training.steps == 1000


def test_set_replaces_one_with_the_other(recipe_file: Path) -> None:
    assert load_recipe(recipe_file, changes=("training.steps=3",)).training.epochs is None
    with_steps = recipe_file.with_name("steps.toml")
    with_steps.write_text(recipe_file.read_text("utf-8").replace("epochs = 2", "steps = 4"), "utf-8")
    assert load_recipe(with_steps, changes=("training.epochs=1.5",)).training.epochs == 1.5
    with pytest.raises(RecipeError, match="both there"):
        load_recipe(with_steps, changes=("training.epochs=1", "training.steps=3"))


def test_a_recipe_with_epochs_survives_being_written(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file)
    again = tmp_path / "again.toml"
    again.write_text(to_toml(recipe), "utf-8")
    assert load_recipe(again) == recipe


def test_the_plan_says_the_steps(recipe_file: Path, images: Path) -> None:
    """Eight images of one or two sizes in batches of two."""
    found = plan(load_recipe(recipe_file))
    assert found.training.data["views_per_image"] == 2
    assert found.timing.steps == found.training.data["steps"]


def test_what_does_not_go_with_so_few_steps_is_refused_when_they_are_known(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, changes=("training.warmup_steps=900",))
    with pytest.raises(RecipeError, match=r"warmup_steps is 900, but there are only \d+ steps"):
        plan(recipe)


@pytest.mark.slow
def test_a_run_of_epochs_is_one_of_its_steps_and_is_resumed_exactly(
    recipe_file: Path, tmp_path: Path
) -> None:
    recipe: Recipe = load_recipe(recipe_file)
    epochs = train(recipe, tmp_path / "epochs")
    assert isinstance(epochs, Finished)
    as_run = load_recipe(epochs.folder / "recipe.toml")
    assert as_run.training.epochs is None and as_run.training.steps == epochs.summary["steps"]
    assert epochs.summary["views_per_image"] == 2
    changes = (f"training.steps={as_run.training.steps}",)
    steps = train(load_recipe(recipe_file, changes=changes), tmp_path / "steps")
    assert isinstance(steps, Finished)
    assert epochs.lora_file.read_bytes() == steps.lora_file.read_bytes()

    stopped = tmp_path / "stopped"
    shutil.copytree(epochs.folder, stopped)
    shutil.rmtree(stopped / "checkpoints" / f"step_{as_run.training.steps:06}")
    (stopped / "tiny.safetensors").unlink()
    resumed = train(recipe, stopped, resume=True)
    assert isinstance(resumed, Finished)
    assert resumed.lora_file.read_bytes() == epochs.lora_file.read_bytes()
    with pytest.raises(RecipeError, match=rf"training.steps: {as_run.training.steps} -> .*the schedule"):
        train(load_recipe(recipe_file, changes=("training.epochs=3",)), stopped, resume=True)

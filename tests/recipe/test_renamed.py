"""Old names of options: accepted with a notice, refused beside the new one, and hashed as they were."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from lora_studio.errors import RecipeError, RenamedOption
from lora_studio.metadata.provenance import recipe_hash
from lora_studio.recipe import Recipe, changes, options
from lora_studio.recipe.load import load_recipe, recipe_from
from lora_studio.recipe.renamed import RENAMED, current_name
from lora_studio.recipe.run_recipe import RUN_RECIPE, load_run_recipe

OLD = """name = "a"
[base]
model = "pocket"
[data]
trigger = "zwx style"
class_words = "style"
more_resolutions = [768, 1024]
latents_on_device_gb = 0.5
[[data.sources]]
images = "style"
repeats = 2
[[data.sources]]
images = "apart"
role = "holdout"
[data.class_images]
count = 40
per_picture = 2.0
[adapter]
convolutions = true
[training]
accumulation = 4
schedule = "linear"
schedule_floor = 0.2
max_bad_steps = 9
[holdout]
count = 3
every = 20
[preview]
prompts = ["a fox, zwx style"]
every = 50
"""
NEW = """name = "a"
[base]
model = "pocket"
[data]
trigger = "zwx style"
class_words = "style"
extra_resolutions = [768, 1024]
latent_memory_gb = 0.5
[[data.sources]]
images = "style"
repeats = 2
[[data.sources]]
images = "apart"
role = "validation"
[data.regularization_images]
count = 40
per_image = 2.0
[adapter]
conv = true
[training]
gradient_accumulation = 4
lr_schedule = "linear"
lr_schedule_floor = 0.2
max_skipped_steps = 9
[validation]
count = 3
every = 20
[samples]
prompts = ["a fox, zwx style"]
every = 50
"""
HASH = "15cac139bb07e4f9ea76b426f2a237d14593110a6365f61a1ce433d3f4ef6c64"  # of OLD, by the first version
SHORT = 'name = "a"\n[base]\nmodel = "pocket"\n[data]\nimages = "images"\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, "utf-8")
    return path


def test_every_old_name_leads_to_an_option_or_a_table_that_exists() -> None:
    known = {name for name, _ in options()} | {name.rpartition(".")[0] for name, _ in options()}
    assert set(RENAMED.values()) <= known and not set(RENAMED) & known


def test_old_names_are_the_new_ones_with_a_notice_for_each(tmp_path: Path) -> None:
    with pytest.warns(RenamedOption) as heard:
        old = load_recipe(written(tmp_path, OLD))
    new = load_recipe(written(tmp_path, NEW))
    assert old == new and changes(old, new) == []
    said = [str(one.message) for one in heard]
    assert "training.accumulation is now training.gradient_accumulation; the old name works" in " ".join(said)
    assert len(said) == len(set(said)) == len(RENAMED) + 1  # and the role
    assert any('"holdout" of data.sources is now "validation"' in one for one in said)


def test_the_hash_in_exported_files_is_that_of_the_first_version(tmp_path: Path) -> None:
    assert recipe_hash(load_recipe(written(tmp_path, NEW))) == HASH


@pytest.mark.parametrize("old", [*RENAMED, "data.class_images.per_picture", "holdout.every", "preview.steps"])
def test_an_old_name_is_found_by_its_dotted_path(old: str) -> None:
    known = {name for name, _ in options()} | {name.rpartition(".")[0] for name, _ in options()}
    assert current_name(old) in known - {old}


def test_set_takes_old_names_over_what_the_recipe_says(tmp_path: Path) -> None:
    path = written(tmp_path, NEW)
    with pytest.warns(RenamedOption, match="holdout.every is now validation.every"):
        assert load_recipe(path, changes=("holdout.every=7",)).validation.every == 7
    with pytest.warns(RenamedOption, match="accumulation"):
        assert load_recipe(path, changes=("training.accumulation=2",)).training.gradient_accumulation == 2
    with pytest.warns(RenamedOption):
        assert load_recipe(written(tmp_path, OLD), changes=("samples.every=9",)).samples.every == 9


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "[training]\naccumulation = 2\ngradient_accumulation = 3\n",
            "training.accumulation is the old name of training.gradient_accumulation, and both are there; "
            "keep training.gradient_accumulation.",
        ),
        (
            "[holdout]\ncount = 0\n[validation]\ncount = 1\n",
            "holdout is the old name of validation, and both",
        ),
    ],
)
def test_an_old_and_a_new_name_at_once_are_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(written(tmp_path, SHORT + text + "[adapter]\nrank = 0\n"))
    said = str(caught.value)
    assert words in said and "2 fault(s)" in said and "adapter.rank is 0" in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[training]\nshedule = 1\n", "did you mean 'lr_schedule'"),
        ("[training]\nmax_bad_step = 1\n", "did you mean 'max_skipped_steps'"),
        ("[training]\ngradient_acumulation = 1\n", "did you mean 'gradient_accumulation'"),
        ("[hold_out]\ncount = 1\n", "did you mean 'validation'"),
        ("[previews]\nsteps = 1\n", "did you mean 'samples'"),
        ("[data.regularization_images]\nper_pictures = 1\n", "did you mean 'per_image'"),
    ],
)
def test_a_slip_in_an_old_name_suggests_the_new_one(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe(written(tmp_path, SHORT + text))


def test_plain_values_may_have_old_names(tmp_path: Path) -> None:
    values = {
        "name": "a",
        "base": {"model": "pocket"},
        "data": {"images": "x"},
        "training": {"accumulation": 2},
    }
    with pytest.warns(RenamedOption):
        recipe = recipe_from(values, folder=tmp_path)
    assert isinstance(recipe, Recipe) and recipe.training.gradient_accumulation == 2
    assert values["training"] == {"accumulation": 2}  # the caller's stay as they are


def test_the_recipe_of_an_old_run_is_read_without_a_notice(tmp_path: Path) -> None:
    written(tmp_path, OLD)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load_run_recipe(tmp_path)
    assert RUN_RECIPE == "recipe.toml" and found == load_recipe(written(tmp_path, NEW))


def test_the_command_line_says_each_old_name_once_in_a_line(tmp_path: Path) -> None:
    path = written(tmp_path, SHORT + "[training]\naccumulation = 2\n")
    command = [sys.executable, "-m", "lora_studio", "train", str(path)]
    command += ["--set", "holdout.count=0", "--set", "adapter.rank=0"]  # the last ends it here
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert result.returncode == 2
    works = "the old name works in this version"
    said = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
    assert said == [
        f"note: training.accumulation is now training.gradient_accumulation; {works}.",
        f"note: holdout.count is now validation.count; {works}.",
    ]

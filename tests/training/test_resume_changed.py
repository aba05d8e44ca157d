"""A resume with another recipe: what is learned must stay the same, and what may change is said."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lora_studio.errors import RecipeError
from lora_studio.recipe import FREE, Recipe, options
from lora_studio.recipe.load import load_recipe
from lora_studio.runs import Run
from lora_studio.training.events import Event, Note
from lora_studio.training.finish import Finished
from lora_studio.training.optimizers import SCHEDULES
from lora_studio.training.prepare.resume import allowed_changes
from lora_studio.training.session import to_toml, train

FIXED = """
name base.model base.vae base.text_encoder base.distilled base.prediction_type base.tokenizer base.dtype
base.quantize base.vae_dtype
data.images data.sources data.recursive data.masks data.exclude data.background data.transparency data.trigger
data.class_words data.captioner data.instance_prompt data.resolution data.extra_resolutions
data.area_tolerance data.max_upscale data.crop data.crops data.flip data.repeats data.caption_dropout
data.caption_lines data.wildcards data.shuffle_tags data.keep_tags data.tag_dropout data.caption_prefix
data.caption_suffix data.max_token_chunks data.regularization_images.count data.regularization_images.images
data.regularization_images.prompt data.regularization_images.weight data.regularization_images.per_image
data.regularization_images.steps data.regularization_images.guidance data.regularization_images.seed
adapter.kind adapter.rank adapter.alpha adapter.text_encoder objective.weighting objective.snr_gamma
objective.noise_offset objective.preservation objective.masked_preservation objective.timesteps
objective.timestep_range objective.timestep_bias objective.multires_noise objective.input_perturbation
objective.density objective.shift objective.sigma_weighting
objective.loss objective.loss_delta training.optimizer_options training.lr_schedule_floor training.steps
training.epochs training.batch_size training.gradient_accumulation training.learning_rate
training.text_encoder_learning_rate training.optimizer training.weight_decay training.lr_schedule
training.warmup_steps training.max_grad_norm training.loss_average training.ema training.seed validation.count
validation.fraction
adapter.rslora adapter.conv adapter.conv_rank adapter.conv_alpha adapter.blocks adapter.layers adapter.start
adapter.lora_plus_ratio adapter.rank_dropout adapter.module_dropout adapter.max_norm adapter.init_from
base.loras base.training_adapter tokens
"""
"""Whoever adds an option decides: either it is `free` in its section, or it is named here."""

FREELY = (
    "data.latent_memory_gb=0",
    "training.max_skipped_steps=2",
    "training.checkpoint_every=3",
    "training.keep_checkpoints=1",
    "machine.device=auto",
    "validation.every=1",
    'samples.prompts=["a green tree"]',
    "samples.negative_prompt=ugly",
    "samples.seed=7",
    "samples.steps=2",
    "samples.guidance=3",
    "samples.every=3",
    "export.dtype=float32",
    "export.title=another",
)


def test_of_every_option_it_is_decided_whether_a_resume_may_change_it() -> None:
    fixed = {name for name, free in options() if not free}
    assert fixed == set(FIXED.split())
    assert fixed.isdisjoint(FREE)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, recipe_file: Path, finished: Finished) -> Path:
    """That finished run as it was after step 2."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    shutil.copytree(finished.folder, folder)
    shutil.rmtree(folder / "checkpoints" / "step_000004")
    (folder / "tiny.safetensors").unlink()
    return folder


def copy_of(stopped: Path, folder: Path) -> Path:
    shutil.copytree(stopped, folder)
    return folder


def notes(recipe: Recipe, folder: Path) -> str:
    """What a resume says."""
    heard: list[Event] = []
    result = train(recipe, folder, resume=True, on_event=heard.append)
    assert isinstance(result, Finished)
    return "\n".join(event.text for event in heard if isinstance(event, Note))


def test_what_may_change_is_said_and_recorded_and_changes_nothing_that_is_learned(
    tmp_path: Path, stopped: Path, recipe_file: Path, finished: Finished
) -> None:
    folder = copy_of(stopped, tmp_path / "run")
    recipe = load_recipe(recipe_file, changes=FREELY)
    base_before = (folder / "previews" / "base_00.png").read_bytes()
    said = notes(recipe, folder)
    for change in FREELY:
        option = change.partition("=")[0]
        assert option in FREE
        assert f"{option}: " in said or option == "machine.device"
    assert load_recipe(folder / "recipe.toml") == recipe
    name = "checkpoints/step_000004/adapters.safetensors"
    assert (folder / name).read_bytes() == (finished.folder / name).read_bytes()
    assert (folder / "previews" / "base_00.png").read_bytes() != base_before  # of the new prompt
    assert not (folder / "previews" / "base_01.png").exists()


def test_what_changes_what_is_learned_is_refused_with_a_list_and_nothing_is_touched(
    stopped: Path, recipe_file: Path
) -> None:
    before = (stopped / "recipe.toml").read_bytes()
    changed = load_recipe(recipe_file, changes=("adapter.rank=8", "samples.every=3", "training.seed=2"))
    with pytest.raises(RecipeError) as caught:
        train(changed, stopped, resume=True)
    said = str(caught.value)
    assert "adapter.rank: 4 -> 8" in said and "training.seed: 1 -> 2" in said and "preview" not in said
    assert said.endswith("start another run with --out, or go on with the recipe as it was.")
    assert (stopped / "recipe.toml").read_bytes() == before


def test_more_steps_are_refused_where_they_change_the_learning_rates_before(
    stopped: Path, recipe_file: Path
) -> None:
    with pytest.raises(
        RecipeError, match=r"training\.steps: 4 -> 6 \(the schedule 'cosine' runs to the last"
    ):
        train(load_recipe(recipe_file, changes=("training.steps=6",)), stopped, resume=True)


@pytest.mark.parametrize("steps", [1, 3, 5, 400])
def test_only_a_constant_schedule_lets_the_number_of_steps_change(
    tmp_path: Path, recipe_file: Path, steps: int
) -> None:
    """The rates of linear and cosine depend on the last step, those of constant and its warm-up do not."""
    longer = f"training.steps={steps}"
    for schedule in SCHEDULES.names():
        of_schedule = (f"training.lr_schedule={schedule}", "training.steps=4")
        run = Run(tmp_path)
        run.text("recipe.toml", to_toml(load_recipe(recipe_file, changes=of_schedule)))
        new = load_recipe(recipe_file, changes=(*of_schedule, longer))
        if schedule == "constant":
            assert [str(one) for one in allowed_changes(run, new)] == [f"training.steps: 4 -> {steps}"]
        elif steps > 1:  # the first step of a warm-up of one has the full rate in any case
            with pytest.raises(RecipeError, match=f"the schedule '{schedule}' runs to the last step"):
                allowed_changes(run, new)


@pytest.mark.slow
def test_a_run_of_constant_rate_can_become_longer_and_equals_one_that_was_so_from_the_start(
    tmp_path: Path, recipe_file: Path
) -> None:
    constant = ("training.lr_schedule=constant", "samples.prompts=[]")
    train(load_recipe(recipe_file, changes=(*constant, "training.steps=2")), tmp_path / "two")
    longer = load_recipe(recipe_file, changes=(*constant, "training.steps=4"))
    assert "training.steps: 2 -> 4" in notes(longer, tmp_path / "two")
    train(longer, tmp_path / "straight")
    name = "checkpoints/step_000004/adapters.safetensors"
    assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()

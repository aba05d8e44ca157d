"""Preservation: images shown without the trigger, whose target is the frozen base's own answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from gradients import shift
from tiny import image_folder, recipe_text

from lora_studio.data.batches import Batch
from lora_studio.errors import RecipeError
from lora_studio.recipe.load import load_recipe
from lora_studio.rng import generator
from lora_studio.runs import Run
from lora_studio.training.events import ignore_events
from lora_studio.training.prepare import Session, prepare
from lora_studio.training.prepare.dataset import read_dataset, shown_captions
from lora_studio.training.report.captions import caption_warnings

HALF = ("objective.preservation=0.5", "data.caption_dropout=0.2")


def batches(session: Session, steps: int) -> list[Batch]:
    return [batch for step in range(1, steps + 1) for batch in session.loop.feed.of_step(step)]


def test_the_share_of_rows_and_their_captions(tmp_path: Path, recipe_file: Path) -> None:
    session = prepare(load_recipe(recipe_file, changes=HALF), Run(tmp_path), ignore_events)
    preserved, shown = [], []
    for batch in batches(session, 300):
        rows = batch.preserved
        preserved += [batch.captions[row] for row in rows]
        shown += [caption for row, caption in enumerate(batch.captions) if row not in rows]
    dropped = sum(caption == "" for caption in shown)
    total = len(preserved) + len(shown)
    assert abs(len(preserved) / total - 0.8 * 0.5) < 0.06
    assert abs(dropped / total - 0.2) < 0.05
    assert not any("zwx" in caption or caption == "" for caption in preserved)
    assert all("zwx style" in caption for caption in shown if caption)


def test_a_preserved_rows_target_is_what_the_untouched_base_answers(
    tmp_path: Path, recipe_file: Path, tiny_base: Path
) -> None:
    twice = (*HALF, "data.repeats=2")  # so that there are batches of two
    session = prepare(load_recipe(recipe_file, changes=twice), Run(tmp_path), ignore_events)
    shift(session.adapters)  # so that the base differs from the model in training
    batch = next(b for b in batches(session, 50) if len(b.preserved) == 1 and len(b.captions) == 2)
    (row,) = batch.preserved
    noised = session.loop.objective.noise(batch.latents, generator("noise"))
    target = session.loop.base_predictions.targets(batch, noised).learned
    unet = UNet2DConditionModel.from_pretrained(tiny_base / "unet", dtype=torch.float32)
    assert batch.conditioning is not None
    with torch.no_grad():
        answer = unet(noised.latents, noised.timestep, batch.conditioning["text"]).sample
    torch.testing.assert_close(target[row], answer[row], atol=1e-5, rtol=1e-4)
    assert torch.equal(target[1 - row], noised.target[1 - row])
    assert not torch.allclose(target[row], noised.target[row], atol=1e-2)


def test_without_it_nothing_changes(tmp_path: Path, recipe_file: Path) -> None:
    session = prepare(load_recipe(recipe_file), Run(tmp_path), ignore_events)
    batch = next(iter(session.loop.feed.of_step(1)))
    noised = session.loop.objective.noise(batch.latents, generator("noise"))
    assert len(batch.preserved) == 0
    targets = session.loop.base_predictions.targets(batch, noised)
    assert targets.learned is noised.target and batch.outside is None


def test_with_a_trained_text_encoder_the_base_reads_with_its_own(tmp_path: Path, recipe_file: Path) -> None:
    changes = (*HALF, "adapter.text_encoder=true")
    session = prepare(load_recipe(recipe_file, changes=changes), Run(tmp_path), ignore_events)
    batch = next(b for b in batches(session, 50) if len(b.preserved))
    noised = session.loop.objective.noise(batch.latents, generator("noise"))
    before = session.loop.base_predictions.targets(batch, noised).learned
    shift(session.adapters)  # so that the base differs from the model in training
    after = session.loop.base_predictions.targets(batch, noised).learned
    torch.testing.assert_close(after, before)


def test_preservation_without_a_trigger_to_leave_out_is_refused(tmp_path: Path, recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, changes=("objective.preservation=0.5", 'data.trigger="qqq style"'))
    with pytest.raises(RecipeError, match=r"no caption holds data\.trigger"):
        prepare(recipe, Run(tmp_path), ignore_events)


@pytest.mark.parametrize(("nameless", "refused"), [(range(5), True), (range(2), False)])
def test_captions_that_name_nothing_without_the_trigger_ask_for_the_class(
    nameless: range, refused: bool, tmp_path: Path, tiny_base: Path
) -> None:
    images = image_folder(tmp_path / "images")
    for number in nameless:
        (images / f"{number:02}.txt").write_text("a photo of zwx style", "utf-8")
    file = tmp_path / "tiny.toml"
    file.write_text(recipe_text(images, str(tiny_base)), "utf-8")
    recipe = load_recipe(file, changes=("objective.preservation=0.5",))
    records = read_dataset(recipe, 8).used
    if refused:
        with pytest.raises(RecipeError, match=r'"a photo of zwx style" names nothing; set data\.class_words'):
            shown_captions(recipe, records)
    else:
        (warning,) = caption_warnings(shown_captions(recipe, records))
        assert "2 captions in all; data.class_words" in warning
    given = load_recipe(file, changes=("objective.preservation=0.5", 'data.class_words="ball"'))
    captions = shown_captions(given, read_dataset(given, 8).used)
    assert captions.plain(0) == "a photo of ball" and not caption_warnings(captions)

"""What the feed answers besides the batches of a step."""

from __future__ import annotations

from pathlib import Path

from lora_studio.recipe.load import load_recipe
from lora_studio.runs import Run
from lora_studio.training.events import ignore_events
from lora_studio.training.prepare import prepare


def test_the_largest_batch_is_the_first_epochs_largest(tmp_path: Path, recipe_file: Path) -> None:
    session = prepare(load_recipe(recipe_file), Run(tmp_path), ignore_events)
    feed, batches = session.loop.feed, session.batches
    steps = range(1, batches.micro_batches_per_epoch + 1)
    sizes = [batch.latents.numel() for step in steps for batch in feed.of_step(step)]
    assert len(set(sizes)) > 1
    assert feed.largest().latents.numel() == max(sizes)

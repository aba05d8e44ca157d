"""What the feed answers besides the batches of a step."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from noise import grey_noise
from ready import prepared
from tiny import recipe_text

from lora_studio.recipe.load import load_recipe
from lora_studio.rng import generator
from lora_studio.runs import Run
from lora_studio.training.events import ignore_events
from lora_studio.training.prepare import Session, prepare
from lora_studio.training.report import Timing, describe


def test_the_largest_batch_is_the_first_epochs_largest(tmp_path: Path, recipe_file: Path) -> None:
    session = prepare(load_recipe(recipe_file), Run(tmp_path), ignore_events)
    feed, batches = session.loop.feed, session.batches
    steps = range(1, batches.micro_batches_per_epoch + 1)
    sizes = [batch.latents.numel() for step in steps for batch in feed.of_step(step)]
    assert len(set(sizes)) > 1
    assert feed.largest().latents.numel() == max(sizes)


@pytest.fixture
def uneven(tmp_path: Path, tiny_base: Path) -> Path:
    """Five square images and one wide one, for batches of four."""
    images = tmp_path / "images"
    images.mkdir()
    for number, size in enumerate([(64, 64)] * 5 + [(96, 40)]):
        grey_noise(size, 60 + number).convert("RGB").save(images / f"{number}.png")
        (images / f"{number}.txt").write_text(f"image {number}, zwx style")
    (tmp_path / "r.toml").write_text(recipe_text(images, str(tiny_base)), "utf-8")
    return tmp_path / "r.toml"


def ready(recipe: Path, average: str) -> Session:
    changes = ("training.batch_size=4", "data.caption_dropout=0", f"training.loss_average={average}")
    return prepared(load_recipe(recipe, changes=changes), recipe.parent / average)


def weights_of_an_epoch(session: Session) -> dict[str, float]:
    """Caption -> its part of the losses that an epoch's micro-batches are learned with."""
    found: Counter[str] = Counter()
    for step in range(1, session.batches.micro_batches_per_epoch + 1):
        for batch in session.loop.feed.of_step(step):
            for caption, weight in zip(batch.captions, batch.weight, strict=True):
                found[caption] += weight.mean().item() / len(batch)
    return found


def test_images_count_alike_in_batches_of_any_size_if_loss_average_says_so(uneven: Path) -> None:
    micro_batch, image = (ready(uneven, average) for average in ("micro_batch", "image"))
    plain, alike = weights_of_an_epoch(micro_batch), weights_of_an_epoch(image)
    assert len(alike) == 6 and set(alike.values()) == {1 / 4}
    weights = sorted(weight * 4 for weight in plain.values())
    assert weights == [1, 1, 1, 1, 4, 4]  # which of the squares is left over differs from epoch to epoch
    assert sorted(micro_batch.batches.image_weights()) == pytest.approx([2 * 4 / 5] * 5 + [4])
    gradients = []
    for session in (micro_batch, image):
        steps = range(1, session.batches.micro_batches_per_epoch + 1)
        batch = next(one for step in steps for one in session.loop.feed.of_step(step) if len(one) == 1)
        session.loop.forward_backward(batch, generator(1), None)
        gradients.append(torch.cat([one.grad.flatten() for one in session.adapters.parameters("unet")]))
    torch.testing.assert_close(gradients[1], gradients[0] / 4)


def test_the_plan_says_how_much_more_the_images_of_small_buckets_count(uneven: Path) -> None:
    plans = {}
    for average in ("micro_batch", "image"):
        plan = describe(ready(uneven, average), first_step=1, timing=Timing(0.1, 1))
        plans[average] = [text for _, text in plan.rows], plan.data["most_image_weight"]
    told, most = plans["micro_batch"]
    assert most == 4 / (2 * 4 / 5) and any(
        text.endswith("in full: 1, up to 2.5 times as much") for text in told
    )
    told, most = plans["image"]
    assert most == 1 and not any("times as much" in text for text in told)

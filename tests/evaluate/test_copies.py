"""Copies of training images among drawn ones: all are found, whatever was done to them, and no others."""

from __future__ import annotations

import random
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from lora_studio.evaluate.copies import COPY, LEAST, nearest, small, threshold_of
from lora_studio.pocket.samples import style_samples, subject_samples
from lora_studio.pocket.scenes import BACKGROUNDS, POSITIONS, SIZES, Scene, Thing, draw, held_out_scenes

SIDE = 64
SAMPLES = {"style": style_samples, "subject": subject_samples}


def mirrored(image: Image.Image, draws: random.Random) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def cropped(image: Image.Image, draws: random.Random) -> Image.Image:
    """To 70 % of each side, anywhere."""
    wide, high = (round(0.7 * one) for one in image.size)
    left, top = draws.randint(0, image.width - wide), draws.randint(0, image.height - high)
    return image.crop((left, top, left + wide, top + high)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def compressed(image: Image.Image, draws: random.Random) -> Image.Image:
    buffer = BytesIO()
    image.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=30)
    return Image.open(buffer).convert("RGB")


def noisy(image: Image.Image, draws: random.Random) -> Image.Image:
    values = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32)
    noise = np.random.default_rng(draws.randrange(10**6)).normal(0, 20, values.shape)
    return Image.fromarray(np.clip(values + noise, 0, 255).astype(np.uint8))


CHANGES = {"exact": lambda image, draws: image, "mirrored": mirrored, "cropped": cropped}
CHANGES |= {"compressed": compressed, "noisy": noisy}


def stacked(images) -> torch.Tensor:
    return torch.stack([small(one) for one in images])


def other_scenes(kind: str, count: int) -> list[Image.Image]:
    """Of the style, other scenes in it; of the subject, itself where and before what no training image is."""
    if kind == "style":
        return [draw(one, SIDE, SIDE, style="woodcut") for one in held_out_scenes(count, seed=4)]
    draws, trained = random.Random(0), [one.scene for one in subject_samples()]
    shown = {(one.things[0].position, one.background) for one in trained}
    free = [(position, one) for position in POSITIONS for one in BACKGROUNDS if (position, one) not in shown]
    scenes = []
    for number in range(count):
        position, background = free[number % len(free)]
        x, y = (share + draws.uniform(-0.03, 0.03) for share in POSITIONS[position])
        size = draws.choice(list(SIZES))
        thing = Thing("bolt", "red", size, position, (x, y), SIZES[size], draws.uniform(-0.12, 0.12))
        scenes.append(Scene((thing,), background, draws.randrange(1 << 30)))
    return [draw(one, SIDE, SIDE) for one in scenes]


@pytest.mark.parametrize("kind", SAMPLES)
def test_planted_training_images_are_all_found_and_named(kind) -> None:
    images = [one.image().convert("RGB") for one in SAMPLES[kind]()][:12]
    training, draws = stacked(images), random.Random(1)
    threshold = threshold_of(training, training)
    for name, change in CHANGES.items():
        found, which = nearest(stacked([change(one, draws) for one in images]), training)
        assert found.min().item() >= threshold, name
        assert which.tolist() == list(range(len(images))), name


@pytest.mark.parametrize(
    ("kind", "count"),
    [("style", 40), ("subject", 40), *(pytest.param(kind, 500, marks=pytest.mark.slow) for kind in SAMPLES)],
)
def test_no_image_of_another_scene_is_a_copy(kind, count) -> None:
    training = stacked([one.image().convert("RGB") for one in SAMPLES[kind]()])
    found, _ = nearest(stacked(other_scenes(kind, count)), training)
    assert found.max().item() < threshold_of(training, training)


def test_images_that_no_one_trained_on_raise_the_threshold_but_training_images_do_not() -> None:
    images = [one.image().convert("RGB") for one in subject_samples()]
    training = stacked(images)
    near = stacked([Image.blend(images[0].resize((64, 64)), images[1].resize((64, 64)), 0.2)])
    assert threshold_of(training, training[:0]) == threshold_of(training, training) == COPY
    styled = stacked([one.image().convert("RGB") for one in style_samples()][:6])
    assert threshold_of(styled, styled) == threshold_of(styled[[0, *range(6)]], styled[:0]) == LEAST
    found, _ = nearest(near, training)
    assert COPY < found.item() < 0.97
    assert threshold_of(training, near) == pytest.approx(found.item() + 0.02)


def test_the_same_image_is_one_and_a_flat_one_is_like_nothing() -> None:
    images = stacked([one.image().convert("RGB") for one in style_samples()][:3])
    found, which = nearest(images, images)
    assert found.min().item() > 0.98 and which.tolist() == [0, 1, 2]
    flat = torch.full_like(images[:1], 0.5)
    assert nearest(flat, images)[0].item() < 0.3 and nearest(images, flat)[0].max().item() < 0.3
    assert nearest(images[:0], images)[0].shape == (0,)

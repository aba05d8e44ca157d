"""What a base can do with images before it is trained on them, against plain sums and known cases."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from lora_studio.evaluate.assessing import (
    ASPECTS,
    TIMESTEPS,
    BaseAssessment,
    ImageFigures,
    TargetImage,
    assess_base,
    decibels,
    distances,
    following,
    interval_of,
    square,
)
from lora_studio.evaluate.assessing.page import assessment_page, in_figures, ranking_in_words
from lora_studio.evaluate.assessing.ranking import rank_bases
from lora_studio.evaluate.encoders import load_encoder
from lora_studio.evaluate.previews import Noise, draw_asked
from lora_studio.families.loading import load_base
from lora_studio.pocket.scenes import draw, sample_scene
from lora_studio.recipe.training import SamplesConfig

SAMPLES = SamplesConfig(steps=2, guidance=2, seed=3)


def rows(number: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(number, 5, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_following_is_the_own_caption_less_the_mean_of_the_others() -> None:
    images, texts = rows(4, 0), rows(4, 1)
    for place, value in enumerate(following(images, texts)):
        cosines = [float(images[place] @ texts[other]) for other in range(4)]
        others = [one for other, one in enumerate(cosines) if other != place]
        assert value == pytest.approx(cosines[place] - sum(others) / 3, abs=1e-6)
    assert all(map(math.isnan, following(images, None) + following(images[:1], texts[:1])))


def test_distance_leaves_an_image_and_its_counterpart_out() -> None:
    drawn, targets = rows(4, 2), rows(4, 3)
    for place, value in enumerate(distances(drawn, targets)):
        others = [other for other in range(4) if other != place]
        own = sum(float(targets[place] @ targets[other]) for other in others) / 3
        theirs = sum(float(drawn[place] @ targets[other]) for other in others) / 3
        assert value == pytest.approx(own - theirs, abs=1e-6)
    assert distances(targets, targets) == pytest.approx([0.0] * 4, abs=1e-6)


def test_decibels_are_those_of_the_mean_squared_error() -> None:
    draw_of = np.random.default_rng(0)
    one, other = (draw_of.integers(0, 256, (8, 6, 3), np.uint8) for _ in range(2))
    error = ((one.astype(float) - other) ** 2).mean() / 255**2
    found = decibels(Image.fromarray(one), Image.fromarray(other))
    assert found == pytest.approx(10 * math.log10(1 / error))
    assert decibels(Image.fromarray(one), Image.fromarray(one)) == 100


def test_the_mean_of_ratios_is_their_geometric_one() -> None:
    assert interval_of("gap", {0: 2.0, 1: 0.5}).value == pytest.approx(1.0)
    assert interval_of("ceiling", {0: 2.0, 1: 0.5}).value == pytest.approx(1.25)


def targets_of(images: list[Image.Image]) -> list[TargetImage]:
    return [
        TargetImage(f"{n}.png", f"{n:064}", square(image, 64), f"a red ball {n}, zwx", f"a red ball {n}")
        for n, image in enumerate(images)
    ]


@pytest.fixture(scope="module")
def assessed(tiny_base: Path) -> tuple[BaseAssessment, BaseAssessment]:
    """A random base on renders, and on what it draws itself for the captions without the trigger."""
    family, encoder = load_base(str(tiny_base)), load_encoder("pocket")
    before = {name: one.clone() for name, one in family.parts["unet"].state_dict().items()}
    renders = targets_of([draw(sample_scene(n), 64, 64, style="woodcut") for n in range(3)])
    found = assess_base("tiny", family, renders, encoder, SAMPLES, side=64)
    asked = [(one.plain, Noise(SAMPLES.seed, place)) for place, one in enumerate(renders)]
    own = targets_of(draw_asked(family, asked, SAMPLES, size=(64, 64)))
    again = assess_base("tiny", family, own, encoder, SAMPLES, side=64)
    assert all(torch.equal(one, before[name]) for name, one in family.parts["unet"].state_dict().items())
    return found, again


def test_to_a_base_its_own_images_are_as_usual_as_its_own(
    assessed: tuple[BaseAssessment, BaseAssessment],
) -> None:
    renders, own = assessed
    assert own.measures["gap"].value == pytest.approx(1.0, abs=1e-3)
    assert all(level.value == pytest.approx(1.0, abs=1e-2) for level in own.levels)
    assert len(renders.levels) == TIMESTEPS and renders.measures["gap"].value != own.measures["gap"].value
    assert set(renders.measures) == set(ASPECTS) and len(renders.images) == 3


def test_a_trained_base_finds_noise_stranger_than_what_it_was_trained_on() -> None:
    family, encoder = load_base("pocket"), load_encoder("pocket")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    images = [draw(sample_scene(5), 64, 64), draw(sample_scene(6), 64, 64), Image.fromarray(noise)]
    captions = [sample_scene(5).caption(), sample_scene(6).caption(), sample_scene(7).caption()]
    targets = [
        TargetImage(f"{n}.png", f"{n:064}", image, caption, caption)
        for n, (image, caption) in enumerate(zip(images, captions, strict=True))
    ]
    found = assess_base("pocket", family, targets, encoder, SAMPLES.model_copy(update={"steps": 10}), side=64)
    usual, also_usual, strange = (one.figures["gap"] for one in found.images)
    assert strange > 1.5 * max(usual, also_usual)
    assert found.worst("gap")[0].name == found.worst("ceiling")[0].name == "2.png"


def test_the_worst_images_come_first_by_what_is_worse(
    assessed: tuple[BaseAssessment, BaseAssessment],
) -> None:
    renders, _ = assessed
    gaps = [one.figures["gap"] for one in renders.worst("gap")]
    ceilings = [one.figures["ceiling"] for one in renders.worst("ceiling")]
    assert gaps == sorted(gaps, reverse=True) and ceilings == sorted(ceilings)


def made_up(base: str, gaps: list[float], following: list[float]) -> BaseAssessment:
    images = tuple(
        ImageFigures(f"{n}.png", {"gap": gap, "following": fit, "ceiling": 30.0, "distance": 0.1}, (gap,))
        for n, (gap, fit) in enumerate(zip(gaps, following, strict=True))
    )
    measures = {
        name: interval_of(name, {n: one.figures[name] for n, one in enumerate(images)}) for name in ASPECTS
    }
    return BaseAssessment(base, images, measures, (interval_of("gap", dict(enumerate(gaps))),))


def test_bases_are_ranked_by_what_the_images_surely_tell() -> None:
    near = made_up("near", [1.0, 1.1, 1.0, 1.2] * 3, [0.1, 0.3] * 6)
    far = made_up("far", [2.0, 2.1, 1.9, 2.2] * 3, [0.3, 0.1] * 6)
    same = replace(near, base="same")
    found = rank_bases([far, near, same])
    assert found.places == (("near", "same"), ("far",))
    assert found.points == {"far": -2, "near": 1, "same": 1}
    assert ranking_in_words(found).endswith("1. near and same (+1); 2. far (-2).")
    gap = next(one for one in found.differences if one.aspect == "gap" and one.first == "far")
    expected = np.mean(np.log([1.0, 1.1, 1.0, 1.2])) - np.mean(np.log([2.0, 2.1, 1.9, 2.2]))
    assert gap.second == "near" and gap.sign == -1 and gap.better_by.value == pytest.approx(expected)
    assert rank_bases([near, same]).places == (("near", "same"),)


def test_the_page_has_the_figures_of_the_json_and_shows_names_as_they_are(
    assessed: tuple[BaseAssessment, BaseAssessment],
) -> None:
    renders, _ = assessed
    evil = replace(renders, base="<script>alert(1)</script>")
    ranking = rank_bases([renders, evil])
    images = {one.name: Image.new("RGB", (64, 64)) for one in renders.images}
    page = assessment_page("my <b>recipe", [renders, evil], ranking, images, ["a note & more"])
    assert "<script" not in page and "<b>recipe" not in page and "a note &amp; more" in page
    cells = [unescape(one) for one in re.findall(r"<td>(.*?)</td>", page)]
    assert all(in_figures(name, renders.measures[name]) in cells for name in ASPECTS)
    assert all(in_figures("gap", level) in cells for level in renders.levels)
    assert page.count("data:image/jpeg") >= 2 * 3 * 2  # each image with its counterpart, for both bases
    told = json.loads(json.dumps(renders.to_json(), allow_nan=False))
    assert [row["name"] for row in told["images"]] == [one.name for one in renders.worst("gap", 9)]

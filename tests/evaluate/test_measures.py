"""Measures against their formulas, on made features and images; verdicts by their thresholds."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from lora_studio.evaluate.burn import aspects_of, burnt
from lora_studio.evaluate.measures import (
    Compared,
    Observed,
    burn,
    change,
    diversity,
    drift,
    memorisation,
    plain_following,
    prompt_following,
    validation_loss,
)
from lora_studio.evaluate.result import GROUPS, Interval, Measured, Question
from lora_studio.evaluate.statistics import counted_share_of
from lora_studio.evaluate.verdicts import THRESHOLDS, verdicts_of

QUESTIONS = tuple(
    Question(group, f"{group} {number}", f"text {group} {number}") for group in GROUPS for number in range(4)
)
SEEDS = (1, 2, 3)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def observed(seed: int, *, side: int = 8) -> Observed:
    shape = (len(QUESTIONS), len(SEEDS))
    rows = torch.nn.functional.normalize(draws(*shape, 6, seed=seed) - 0.5, dim=-1)
    return Observed(rows, rows, draws(*shape, 4, seed=seed), draws(*shape, 3, side, side, seed=seed))


def compared(base: Observed, tuned: Observed, texts: Tensor | None = None) -> Compared:
    references = Observed(*(None if one is None else one.flatten(0, 1)[:5] for one in vars(base).values()))
    return Compared(QUESTIONS, SEEDS, base, tuned, texts, references, references, list("abcde"), False)


def test_drift_is_the_change_over_what_another_seed_changes() -> None:
    base, tuned = observed(1), observed(2)
    found = drift(compared(base, tuned))

    def rms(one: Tensor, other: Tensor) -> float:
        return math.sqrt(((one - other) ** 2).mean())

    plain = range(8, 16)
    pairs = [(0, 1), (0, 2), (1, 2)]
    top = np.mean([rms(base.small[q, s], tuned.small[q, s]) for q in plain for s in range(3)])
    bottom = np.mean([rms(base.small[q, a], base.small[q, b]) for q in plain for a, b in pairs])
    assert found.interval.value == pytest.approx(top / bottom, rel=1e-5)
    assert set(found.per_question) == set(plain)
    assert np.mean(list(found.per_question.values())) == pytest.approx(top / bottom, rel=1e-5)


def test_of_the_base_itself_nothing_changed_and_with_other_seeds_it_changed_by_one() -> None:
    base = observed(1)
    same = compared(base, base)
    assert drift(same).interval.value == change(same).interval.value == 0
    assert diversity(same).interval == Interval(1.0, 1.0, 1.0, 8)
    rolled = replace(base, small=base.small.roll(1, dims=1))  # each seed has the next one's image
    assert drift(compared(base, rolled)).interval.value == pytest.approx(1, abs=1e-6)


def test_diversity_of_images_that_are_all_one_is_zero() -> None:
    base = observed(1)
    tuned = replace(base, small=base.small[:, :1].expand_as(base.small))
    assert diversity(compared(base, tuned)).interval.value == 0


def test_following_is_how_surely_the_prompt_is_found_less_the_bases() -> None:
    texts = torch.nn.functional.normalize(draws(len(QUESTIONS), 6, seed=3) - 0.5, dim=-1)
    base, tuned = observed(1), observed(2)
    found = prompt_following(compared(base, tuned, texts))

    def share(looks: Observed) -> float:
        cosines = (looks.aligned[:8].double() @ texts.double().T).numpy()
        cosines = 30 * (cosines - cosines.mean(axis=(0, 1)))
        shares = np.exp(cosines) / np.exp(cosines).sum(axis=-1, keepdims=True)
        return float(np.mean([shares[q, :, q] for q in range(8)]))

    assert found.base == pytest.approx(share(base), abs=1e-6)
    assert found.interval.value == pytest.approx(share(tuned) - share(base), abs=1e-6)


def test_images_that_are_their_texts_are_found_and_a_shift_of_all_of_them_changes_nothing() -> None:
    texts = torch.eye(len(QUESTIONS))
    shape = (len(QUESTIONS), len(SEEDS), len(QUESTIONS))
    right = replace(observed(1), aligned=texts[:, None].expand(shape).clone())
    shifted = replace(right, aligned=right.aligned + 0.7 * texts[5])
    turned = replace(right, aligned=right.aligned.roll(1, dims=0))
    assert prompt_following(compared(right, right, texts)).base > 0.99
    assert prompt_following(compared(right, shifted, texts)).interval.value == pytest.approx(0, abs=1e-6)
    assert prompt_following(compared(right, turned, texts)).interval.value < -0.99
    assert plain_following(compared(right, turned, texts)).interval.value < -0.99


def test_without_texts_following_is_not_measured() -> None:
    assert prompt_following(compared(observed(1), observed(2))) is None


def scene(contrast: float = 0.5) -> Image.Image:
    rows = np.linspace(128 - 120 * contrast, 128 + 120 * contrast, 64)
    grey = np.broadcast_to(rows, (64, 64))
    return Image.fromarray(np.stack([grey, grey * 0.9, grey * 0.8], axis=-1).astype(np.uint8))


def test_aspects_are_what_they_say() -> None:
    clipped, contrast, saturation, sharpness = aspects_of(scene())
    assert clipped == 0 and contrast == pytest.approx(120 * 0.5 / 255 / math.sqrt(3) * 0.92, rel=0.1)
    assert saturation == pytest.approx(0.2 * 128 / 255, rel=0.1) and sharpness < 0.01
    assert aspects_of(Image.new("RGB", (40, 30), "white"))[0] == 1
    assert aspects_of(scene().filter(ImageFilter.FIND_EDGES))[3] != sharpness
    noisy = np.asarray(scene()) + np.random.default_rng(0).normal(0, 40, (64, 64, 3))
    assert aspects_of(Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)))[3] > 20 * sharpness


def test_burnt_is_beyond_all_that_base_and_references_show() -> None:
    usual = [torch.tensor([aspects_of(scene(one)) for one in (0.2, 0.4, 0.6)])]
    images = torch.tensor([aspects_of(scene(one)) for one in (0.5, 0.65)])
    assert burnt(images, usual).tolist() == [0, 0]
    harsh = Image.fromarray(np.where(np.asarray(scene()) > 120, 255, 0).astype(np.uint8))
    assert burnt(torch.tensor([aspects_of(harsh)]), usual).tolist() == [1]
    shape = (len(QUESTIONS), len(SEEDS), 4)
    base = replace(observed(1), aspects=usual[0][0].expand(shape))
    burned = replace(base, aspects=torch.tensor(aspects_of(harsh)).expand(shape))
    assert burn(compared(base, base)).interval.value == 0
    assert burn(compared(base, burned)).interval.value == 1


def test_memorisation_counts_copies_among_captions_trained_on_and_names_the_pair() -> None:
    base = observed(1, side=48)
    given = compared(base, observed(2, side=48))
    training = replace(given.training, small=draws(5, 3, 48, 48, seed=9))
    planted = given.tuned.small.clone()
    planted[0], planted[1, 2] = training.small[3], training.small[4]
    given = replace(given, tuned=replace(given.tuned, small=planted), training=training)
    found, near = memorisation(given, 0.84)
    assert found.interval.value == pytest.approx(4 / 12) and found.per_question[1] == pytest.approx(1 / 3)
    assert [one.word for one in verdicts_of([found])] == ["memorised"]
    copied = {(one.question, one.seed, one.training_image) for one in near if one.copied}
    assert copied == {(0, 1, "d"), (0, 2, "d"), (0, 3, "d"), (1, 3, "e")}
    assert [one.copied for one in near[:4]] == [True] * 4


@pytest.mark.parametrize(
    ("shares", "decided"),
    [
        ([1, 1 / 3, 0, 0], True),  # of four training images
        ([1, 0, 0, 0], True),  # one of them, whatever the seed
        ([1 / 3, 1 / 3, 0, 0], True),
        ([1 / 3, 0, 0, 0], False),  # a single image may be chance
        ([1 / 3, 1 / 3, 0, 0, 0], False),
        ([1, 0, 0, 0, 0], True),
    ],
)
def test_that_it_is_memorised_rests_on_the_number_of_copies(shares, decided) -> None:
    per_question = dict(enumerate(shares))
    (said,) = verdicts_of([Measured("memorisation", counted_share_of(per_question, 3), per_question)])
    assert (said.word, said.decided) == ("memorised", decided)


def test_copies_that_are_chance_are_hardly_ever_called_memorised() -> None:
    """At the most that 500 other scenes without one allow: 1 in 167."""
    draw, said = np.random.default_rng(3), 0
    for _ in range(1000):
        per_question = dict(enumerate(draw.binomial(3, 1 / 167, 5) / 3))
        found = verdicts_of([Measured("memorisation", counted_share_of(per_question, 3), per_question)])
        said += any(one.decided for one in found)
    assert said <= 2


def test_validation_loss_is_the_mean_over_images() -> None:
    found = validation_loss({"a.png": 0.8, "b.png": 1.0, "c.png": math.nan})
    assert found.interval.value == pytest.approx(0.9) and found.interval.questions == 2
    assert validation_loss({}) is None


def with_interval(name: str, value: float, low: float, high: float) -> Measured:
    return Measured(name, Interval(value, low, high, 10), {0: value})


@pytest.mark.parametrize("threshold", THRESHOLDS, ids=lambda one: f"{one.word}, {one.measure}")
def test_a_word_is_said_only_where_the_interval_excludes_its_threshold(threshold) -> None:
    side = 1 if threshold.above else -1
    beyond, short, open_ = (threshold.value + side * one for one in (0.2, -0.2, 0.1))
    ends = sorted((beyond - 0.1 * side, beyond + 0.1 * side))
    (said,) = verdicts_of([with_interval(threshold.measure, beyond, *ends)])
    assert (said.word, said.decided, said.measure) == (threshold.word, True, threshold.measure)
    ends = sorted((short - 0.1, short + 0.1))
    assert verdicts_of([with_interval(threshold.measure, short, *ends)]) == ()
    (said,) = verdicts_of([with_interval(threshold.measure, open_, open_ - 0.2, open_ + 0.2)])
    assert (said.word, said.decided, said.more_questions) == (threshold.word, False, 30)
    assert "30 more prompts would" in said.sentence


def test_of_what_has_no_effect_nothing_else_is_said() -> None:
    found = verdicts_of([with_interval("change", 0.0, 0.0, 0.0), with_interval("fidelity", 0.1, -0.2, 0.4)])
    assert [one.word for one in found] == ["no effect"]

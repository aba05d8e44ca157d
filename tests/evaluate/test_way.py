"""How far images went towards the references, against plain loops and where the truth is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lora_studio.evaluate.way import SHRUNK, Way

QUESTIONS, SEEDS, DIMENSIONS, REFERENCES = 8, 3, 40, 12


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def images_of(seed: int, mean: Tensor) -> Tensor:
    """[Q, S, D]: images of one prompt are more alike than others."""
    prompts, noise = (
        normal(seed, QUESTIONS, 1, DIMENSIONS),
        normal(seed + 10**6, QUESTIONS, SEEDS, DIMENSIONS),
    )
    return mean + prompts + noise


def gained(way: Way, base: Tensor, tuned: Tensor) -> float:
    return (way.gone(tuned) - way.gone(base)).mean().item()


def test_it_is_the_discriminant_with_each_question_left_out() -> None:
    base, tuned = images_of(1, torch.zeros(DIMENSIONS)), images_of(2, torch.ones(DIMENSIONS))
    references = normal(3, REFERENCES, DIMENSIONS) + 1
    rows = base.reshape(-1, DIMENSIONS)
    within = (24 * rows.var(dim=0) + 12 * references.var(dim=0)) / 36
    weights = 1 / (within + SHRUNK * within.mean())
    length, pairs = 0.0, 0
    for q in range(QUESTIONS):
        for p in range(QUESTIONS):
            if p != q:
                for one in base[q]:
                    for other in base[p]:
                        length, pairs = length + float((one * other * weights).sum()), pairs + 1
    length /= pairs
    alike = [
        (a * b * weights).sum() for i, a in enumerate(references) for j, b in enumerate(references) if i != j
    ]
    length += float(sum(alike) / len(alike))
    length -= 2 * float(sum((a * b * weights).sum() for a in rows for b in references)) / (24 * 12)
    way = Way.between(base, references)
    assert way.length == pytest.approx(length, rel=1e-4)
    found = way.gone(tuned) - way.gone(base)
    for q in range(QUESTIONS):
        start = torch.cat([base[p] for p in range(QUESTIONS) if p != q]).mean(dim=0)
        step = (references.mean(dim=0) - start) * weights
        for s in range(SEEDS):
            expected = float(((tuned[q, s] - base[q, s]) * step).sum()) / length
            assert found[q, s].item() == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_on_average_it_is_the_share_of_the_way_that_images_went(share: float) -> None:
    apart = torch.zeros(DIMENSIONS)
    apart[:10] = 1.0
    found = []
    for seed in range(0, 3000, 10):
        base, tuned = images_of(seed, torch.zeros(DIMENSIONS)), images_of(seed + 1, share * apart)
        found.append(gained(Way.between(base, normal(seed + 2, REFERENCES, DIMENSIONS) + apart), base, tuned))
    values = torch.tensor(found)
    assert values.median().item() == pytest.approx(share, abs=0.06)


def test_what_changed_nothing_went_nowhere() -> None:
    base = images_of(1, torch.zeros(DIMENSIONS))
    assert gained(Way.between(base, normal(2, 5, DIMENSIONS) + 1), base, base.clone()) == 0


def test_a_way_is_not_clear_where_references_are_like_the_bases_images() -> None:
    base = images_of(1, torch.zeros(DIMENSIONS))
    clear = [
        Way.between(base, normal(seed, REFERENCES, DIMENSIONS) + mean).is_clear(base)
        for mean in (0.0, 2.0)
        for seed in range(2, 12)
    ]
    assert sum(clear[:10]) <= 1 and all(clear[10:])


def test_an_encoders_scale_and_constant_dimensions_do_not_matter() -> None:
    base, tuned = images_of(1, torch.zeros(DIMENSIONS)), images_of(2, torch.ones(DIMENSIONS))
    references = normal(3, REFERENCES, DIMENSIONS) + 1
    expected = gained(Way.between(base, references), base, tuned)
    scaled = [
        7 * torch.cat([one, torch.full((*one.shape[:-1], 1), 0.4)], -1) for one in (base, tuned, references)
    ]
    way = Way.between(scaled[0], scaled[2])
    assert gained(way, scaled[0], scaled[1]) == pytest.approx(expected, rel=0.02)

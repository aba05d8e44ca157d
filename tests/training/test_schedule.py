"""Learning rates against closed formulas."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from lora_studio.errors import RecipeError
from lora_studio.recipe.training import TrainingConfig
from lora_studio.training.optimizers import SCHEDULES, factor, make_schedule
from lora_studio.training.prepare.checks import schedule_faults

STEPS, WARMUP = 50, 10


def rates(name: str, floor: float | None = None) -> list[float]:
    schedule = make_schedule(name, floor)
    return [factor(schedule, step, steps=STEPS, warmup_steps=WARMUP) for step in range(1, STEPS + 1)]


@pytest.mark.parametrize(("floor", "end"), [(None, 0.1), (0.25, 0.25), (1.0, 1.0)])
def test_cosine_falls_along_half_a_cosine_to_its_floor(floor: float | None, end: float) -> None:
    for step, rate in enumerate(rates("cosine", floor), start=1):
        angle = math.pi * (step - WARMUP) / (STEPS - WARMUP)
        expected = step / WARMUP if step <= WARMUP else (1 + end) / 2 + (1 - end) / 2 * math.cos(angle)
        assert rate == pytest.approx(expected, abs=1e-12)


def test_linear_falls_straight_to_its_floor() -> None:
    for step, rate in enumerate(rates("linear", 0.25), start=1):
        expected = step / WARMUP if step <= WARMUP else 1 - 0.75 * (step - WARMUP) / (STEPS - WARMUP)
        assert rate == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("name", "floor"), [("linear", None), ("linear", 0.0), ("cosine", 0.0)])
def test_what_ends_at_zero_does_so_behind_the_last_step_as_in_transformers(
    name: str, floor: float | None
) -> None:
    """Theirs counts from 0 and has a rate of 0 in the first step of its warm-up; after it they agree."""
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=WARMUP, num_training_steps=STEPS)
    expected = []
    for _ in range(STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    found = rates(name, floor)
    assert found[WARMUP:] == pytest.approx(expected[WARMUP:], abs=1e-12) and min(found) > 0


@pytest.mark.parametrize("name", SCHEDULES.names())
@pytest.mark.parametrize("warmup", [0, 1, 20])
def test_no_step_has_a_rate_of_zero(name: str, warmup: int) -> None:
    schedule = make_schedule(name, None)
    assert all(factor(schedule, step, steps=20, warmup_steps=warmup) > 0 for step in range(1, 21))


def test_constant_stays_after_its_warm_up() -> None:
    assert rates("constant") == [step / WARMUP for step in range(1, WARMUP)] + [1.0] * (STEPS - WARMUP + 1)


def test_a_floor_of_what_does_not_fall_is_refused() -> None:
    with pytest.raises(
        RecipeError, match=r"lr_schedule_floor is 0\.1, but the schedule 'constant' does not fall"
    ):
        make_schedule("constant", 0.1)


@pytest.mark.parametrize(("value", "steps"), [(0, 0), (20, 20), (0.05, 50), (0.0004, 0), (1, 1), (30.0, 30)])
def test_a_warm_up_is_steps_or_a_share_of_all(value: float, steps: int) -> None:
    config = TrainingConfig(steps=1000, warmup_steps=value)
    assert config.warmup == steps
    assert TrainingConfig.model_validate(config.model_dump(mode="json")) == config


def test_a_warm_up_that_is_neither_is_refused() -> None:
    with pytest.raises(
        ValidationError, match=r"warmup_steps is 1\.5: give a whole number of steps, or a share"
    ):
        TrainingConfig(warmup_steps=1.5)


@pytest.mark.parametrize(
    ("steps", "warmup", "words"),
    [
        (
            1000,
            5000,
            "training.warmup_steps is 5000, but there are only 1000 steps, so the learning rate would rise",
        ),
        (30, 30, "training.warmup_steps is 30, but there are only 30 steps"),
        (4, 0.9, "training.warmup_steps is 0.9, but there are only 4 steps"),
    ],
)
def test_a_warm_up_as_long_as_the_run_is_refused(steps: int, warmup: float, words: str) -> None:
    (fault,) = schedule_faults(TrainingConfig(steps=steps, warmup_steps=warmup))
    assert fault.startswith(words)


@pytest.mark.parametrize(("steps", "warmup"), [(1000, 999), (1, 1), (2, 20), (20, 20), (1, 0), (1000, 0.5)])
def test_a_shorter_warm_up_is_taken_and_so_is_the_usual_one(steps: int, warmup: float) -> None:
    """Short trials have it, and recipes as run have it written out."""
    config = TrainingConfig(steps=steps, warmup_steps=warmup)
    assert schedule_faults(config) == []
    assert schedule_faults(TrainingConfig.model_validate(config.model_dump(mode="json"))) == []

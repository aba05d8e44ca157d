"""Learning-rate schedules as pure functions of the optimizer step: nothing to save, nothing to step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial

from lora_studio.errors import RecipeError
from lora_studio.registry import Registry

Schedule = Callable[[float], float]
"""Share of the way done after the warm-up, 0..1 -> factor on the learning rate."""


def cosine(done: float, *, floor: float = 0.1) -> float:
    """From 1 down to the floor along half a cosine."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def linear(done: float, *, floor: float = 0.0) -> float:
    """From 1 straight down to the floor."""
    return floor + (1 - floor) * (1 - done)


def constant(done: float) -> float:
    """Always 1."""
    return 1.0


SCHEDULES: Registry[Schedule] = Registry(
    "schedule",
    {name: f"lora_studio.training.optimizers.schedule:{name}" for name in ("cosine", "linear", "constant")},
)


def make_schedule(name: str, floor: float | None) -> Schedule:
    """The schedule of this name, ending at `floor` or, if that is None, where it always does.

    Raises RecipeError for an unknown name, and for a floor of a schedule that never falls.
    """
    schedule = SCHEDULES[name]
    if floor is None:
        return schedule
    if "floor" not in inspect.signature(schedule).parameters:
        raise RecipeError(
            f"training.lr_schedule_floor is {floor:g}, but the schedule {name!r} does not fall; leave it "
            'out, or set training.lr_schedule = "cosine" or "linear".'
        )
    return partial(schedule, floor=floor)  # type: ignore[call-arg]


def factor(schedule: Schedule, step: int, *, steps: int, warmup_steps: int) -> float:
    """The factor for step 1..steps: a linear warm-up, then the schedule, which ends at the last step."""
    if step <= warmup_steps:
        return step / warmup_steps
    return schedule((step - warmup_steps) / max(1, steps - warmup_steps))

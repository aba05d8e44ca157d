"""Learning-rate schedules as pure functions of the optimizer step: nothing to save, nothing to step."""

from __future__ import annotations

import math
from collections.abc import Callable

from lora_studio.registry import Registry

Schedule = Callable[[float], float]
"""Share of the way done after the warm-up, 0..1 -> factor on the learning rate."""


def cosine(done: float) -> float:
    """From 1 down to 0.1 along half a cosine."""
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))


def linear(done: float) -> float:
    """From 1 straight down to 0."""
    return 1 - done


def constant(done: float) -> float:
    """Always 1."""
    return 1.0


SCHEDULES: Registry[Schedule] = Registry(
    "schedule",
    {name: f"lora_studio.training.schedule:{name}" for name in ("cosine", "linear", "constant")},
)


def factor(schedule: Schedule, step: int, *, steps: int, warmup_steps: int) -> float:
    """The factor for step 1..steps: a linear warm-up, then the schedule, which ends at the last step."""
    if step <= warmup_steps:
        return step / warmup_steps
    return schedule((step - warmup_steps) / max(1, steps - warmup_steps))

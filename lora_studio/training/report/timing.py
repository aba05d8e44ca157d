"""How long a step, a validation and a set of previews take, found by doing them once; nothing is changed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from lora_studio.evaluate import TIMESTEPS, render
from lora_studio.text import Section, duration
from lora_studio.training.prepare import Session


@dataclass(frozen=True)
class Timing:
    """Seconds of each kind of work, once, and how often a run does it."""

    step: float
    steps: int
    validation: float = 0.0
    validations: int = 0
    preview: float = 0.0  # all prompts
    previews: int = 0

    @property
    def total(self) -> float:
        return self.step * self.steps + self.validation * self.validations + self.preview * self.previews

    def section(self) -> Section:
        validation, previews = self.validation * self.validations, self.preview * self.previews
        parts = {"the steps": self.step * self.steps, "validation images": validation, "previews": previews}
        listed = ", ".join(f"{duration(seconds)} for {what}" for what, seconds in parts.items() if seconds)
        total = f"{duration(self.total)}: " if validation or previews else ""
        data = {"seconds_of_validation": validation, "seconds_of_previews": previews}
        return Section([("time", f"about {total}{listed}")], {"seconds_per_step": self.step} | data)


def time_everything(session: Session, *, first_step: int = 1) -> Timing:
    """By a step of the largest micro-batch, a part of a validation, and a preview of two steps."""
    return replace(
        counts(session, first_step=first_step),
        step=time_a_step(session),
        validation=time_validation(session),
        preview=time_previews(session),
    )


def counts(session: Session, *, first_step: int = 1) -> Timing:
    """How often each is still to be done; no seconds yet."""
    recipe, steps, new = session.recipe, session.recipe.training.steps, first_step == 1
    validations = _at_intervals(first_step, steps, recipe.validation.every) + (2 if new else 1)
    previews = _at_intervals(first_step, steps, recipe.samples.every) + new
    return Timing(
        step=0.0,
        steps=steps - first_step + 1,
        validations=validations if session.validation else 0,
        previews=previews if session.recipe.samples.prompts else 0,
    )


def time_a_step(session: Session) -> float:
    """Seconds of one optimizer step of the largest micro-batches."""
    loop = session.loop
    batch = loop.feed.largest()
    loop.try_out(batch)  # the first pass pays for what is made once
    return _seconds(session, lambda: loop.try_out(batch)) * loop.config.gradient_accumulation


def time_validation(session: Session) -> float:
    """Seconds of one validation over all images, from the first."""
    validation = session.validation
    if validation is None:
        return 0.0
    one = validation.images[0]
    numbers = sum(image.latents.numel() for image in validation.images) / one.latents.numel()
    rows = min(validation.rows_at_once, TIMESTEPS)
    return _seconds(session, lambda: validation.try_out(rows)) * numbers * TIMESTEPS / rows


def time_previews(session: Session) -> float:
    """Seconds of all prompts' images, from the first with two steps."""
    samples, device = session.recipe.samples, session.family.device
    if not samples.prompts:
        return 0.0
    ends: list[float] = []
    trial = samples.model_copy(update={"prompts": samples.prompts[:1], "steps": 2})
    side = session.recipe.data.resolution
    draw = partial(render, session.family, trial, side=side, after_step=lambda: ends.append(_now(device)))
    whole = _seconds(session, draw)
    return (whole + (samples.steps - 2) * (ends[1] - ends[0])) * len(samples.prompts)


def _at_intervals(first_step: int, steps: int, every: int) -> int:
    """How many of the steps are multiples of `every`, and the last one; `every` 0 is only that."""
    return len({*(range(every, steps, every) if every else ()), steps} & {*range(first_step, steps + 1)})


def _seconds(session: Session, work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return _now(session.family.device) - began


def _now(device: torch.device) -> float:
    """Seconds, when the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

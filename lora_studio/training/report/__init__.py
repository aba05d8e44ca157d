"""What will be trained, told before the first step: a section for each subject, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from lora_studio.data.manifest import Manifest
from lora_studio.evaluate.artist import Brush
from lora_studio.evaluate.material import asked_of
from lora_studio.evaluate.previews import drawn_together, render, sampling_of
from lora_studio.evaluate.validation import TIMESTEPS
from lora_studio.families.base import ModelFamily
from lora_studio.recipe import Recipe
from lora_studio.recipe.training import SamplesConfig
from lora_studio.text import PlanSection, duration, memory_size, plural
from lora_studio.training.events import TrainingPlan
from lora_studio.training.loop.watch import draw_within_memory, measure_within_memory
from lora_studio.training.machine.self_test import COMPILE_FROM
from lora_studio.training.prepare import Session
from lora_studio.training.report.adapters import adapters_section
from lora_studio.training.report.captions import captions_section, image_sections, shapes_section

NOTABLE = 1.5  # times what another image counts
COMMON_VIEWS = (30, 300)  # how often an image is seen in runs that turn out well


def describe(session: Session, *, first_step: int, timing: Timing) -> TrainingPlan:
    """The plan of a session whose first step is above 1 if it is resumed."""
    model, notes, folder = session.recipe.base.model, session.family.notes, str(session.run.folder)
    sections = (
        PlanSection([("base", model), *(("", note) for note in notes)], {"base": model, "base_notes": notes}),
        *image_sections(session),
        captions_section(session),
        shapes_section(session),
        _steps(session, first_step),
        processes_section(session.processes.count, session.recipe.training.batch_size),
        adapters_section(session.recipe, session.adapters),
        _device(session),
        _learning_rate(session),
        timing.section(),
        PlanSection([("run folder", folder)], {"folder": folder}),
    )
    return TrainingPlan(session.recipe.name, sections)


def _steps(session: Session, first_step: int) -> PlanSection:
    training = session.recipe.training
    views = session.batches.average_views(training.steps)
    images = training.batch_size * training.gradient_accumulation
    start = f", going on at step {first_step}" if first_step > 1 else ""
    seen = f"each image is seen about {views:.0f} times"
    rows = [("steps", f"{training.steps}{start}; {plural(images)} a step, so {seen}")]
    common = "{} to {} times are common".format(*COMMON_VIEWS)
    if views < COMMON_VIEWS[0]:
        rows.append(("", f"that is little: {common}; take more steps or fewer images"))
    if views > COMMON_VIEWS[1]:
        rows.append(("", f"that is a lot: {common}; take fewer steps or more images"))
    data: dict[str, float] = {"steps": training.steps, "first_step": first_step}
    most, heavy = _weights(session.batches.image_weights())
    if training.loss_average == "image":
        most = 1.0
    elif heavy:
        few = "images with few others in their bucket, whose small batches count in full"
        rows.append(("", f"{few}: {heavy}, up to {most:.3g} times as much"))
        rows.append(("", 'training.loss_average = "image" has all count alike'))
    data |= {"images_per_step": images, "views_per_image": views}
    return PlanSection(rows, data | {"most_image_weight": most})


def _weights(weights: list[float]) -> tuple[float, int]:
    """How many times what another image counts one does at most, and how many are `NOTABLE`."""
    least = min(weights)
    return max(weights) / least, sum(weight >= NOTABLE * least for weight in weights)


def processes_section(processes: int, batch_size: int) -> PlanSection:
    """What the batch size means to several processes, and how many of them have nothing to do."""
    data = {"processes": processes, "batch_size": batch_size}
    if processes == 1:
        return PlanSection((), data)
    fewest, more = divmod(batch_size, processes)
    each = f"{fewest} or {fewest + 1}" if more else str(fewest)
    together = f"training.batch_size = {batch_size} counts the images of all of them together"
    rows = [("processes", f"{processes}; {together}, so each has {each}")]
    if idle := max(0, processes - batch_size):
        larger = f"take a larger batch: training.batch_size = {processes} gives each an image"
        fault = f"{idle} of the {processes} processes have nothing to train"
        rows.append(("warning", f"{fault}; launch fewer, or {larger}"))
    return PlanSection(rows, data)


def _device(session: Session) -> PlanSection:
    device, dtype = str(session.machine.device), str(session.machine.dtype).removeprefix("torch.")
    rows = [("device", f"{device}, base in {dtype}, trained weights in float32")]
    rows += [("", note)] if (note := session.machine.note) else []
    compiles = session.machine.config.compile is True
    if session.machine.device.type == "cuda" and session.recipe.machine.compile == "auto":
        pays = f"compiling is estimated to pay from {COMPILE_FROM:,} passes on, where it works"
        rows.append(("", f"{'compiled' if compiles else 'not compiled'}: {pays} (machine.compile)"))
    data = {"device": device, "precision": dtype, "compile": compiles, "device_note": note}
    if (offloaded := session.offloaded) is not None:
        count, size = len(offloaded.sizes), sum(offloaded.sizes)
        what = f"{plural(count, 'block')} of the base, {memory_size(size)}, in main memory"
        rows.append(("", f"{what}: forward and backward each copy them to the device"))
        data |= {"offloaded_blocks": count, "offloaded_bytes": size}
    return PlanSection(rows, data)


def _learning_rate(session: Session) -> PlanSection:
    training, rate, note = session.recipe.training, session.recipe.training.learning_rate, ""
    if not session.adapters.layers:
        rate = max(token.learning_rate for token in session.recipe.tokens)
    if training.warms_up_to_the_end:
        reached = f"{min(1.0, training.steps / training.warmup):.0%} of this, in the last step"
        note = f"the warm-up takes {training.warmup} steps, so the rate gets to {reached}"
        note += "; training.warmup_steps makes that shorter"
    rows = [("learning rate", f"{rate:g}"), *([("", note)] if note else [])]
    return PlanSection(rows, {"learning_rate": rate, "warmup_note": note})


@dataclass(frozen=True)
class Timing:
    """Seconds of each kind of work, once, and how often a run does it."""

    step: float
    steps: int
    validation: float = 0.0
    validations: int = 0
    preview: float = 0.0  # all prompts
    previews: int = 0
    drawing: float = 0.0  # images of a question, for [evaluate]
    drawings: int = 0

    @property
    def total(self) -> float:
        own = self.step * self.steps + self.validation * self.validations + self.preview * self.previews
        return own + self.drawing * self.drawings

    def section(self) -> PlanSection:
        """The expected duration of steps, validation and previews; in JSON seconds."""
        validation, previews = self.validation * self.validations, self.preview * self.previews
        evaluation = self.drawing * self.drawings
        parts = {"the steps": self.step * self.steps, "validation images": validation, "previews": previews}
        parts["evaluation"] = evaluation
        listed = ", ".join(f"{duration(seconds)} for {what}" for what, seconds in parts.items() if seconds)
        total = f"{duration(self.total)}: " if validation or previews or evaluation else ""
        data = {"seconds_of_validation": validation, "seconds_of_previews": previews}
        data["seconds_of_evaluation"] = evaluation
        return PlanSection([("time", f"about {total}{listed}")], {"seconds_per_step": self.step} | data)


def time_everything(session: Session, *, first_step: int = 1) -> Timing:
    """By a step of the largest micro-batch, a part of a validation, and a preview of two steps."""
    left, step = counts(session, first_step=first_step), time_a_step(session)
    drawing = time_drawing(session) if left.drawings else 0.0
    validation, preview = time_validation(session), time_previews(session)
    return replace(left, step=step, validation=validation, preview=preview, drawing=drawing)


def counts(session: Session, *, first_step: int = 1) -> Timing:
    """How often each is still to be done; no seconds yet."""
    recipe, steps, new = session.recipe, session.recipe.training.steps, first_step == 1
    validations = _at_intervals(first_step, steps, recipe.validation.every) + (2 if new else 1)
    previews = _at_intervals(first_step, steps, recipe.samples.every) + new
    left = {"steps": steps - first_step + 1, "validations": validations if session.validation else 0}
    drawings = questions_left(recipe, session.manifest, session.family, first_step=first_step)
    previews = previews if recipe.samples.prompts else 0
    return Timing(step=0.0, **left, previews=previews, drawings=drawings)


def time_a_step(session: Session) -> float:
    """Seconds of one optimizer step of the largest micro-batches, the quickest of two.

    The first pays for what is made once; a machine that is busy with something else may slow either.
    """
    loop, batch = session.loop, session.loop.feed.largest()
    tried = [_seconds(session, lambda: loop.try_out(batch)) for _ in range(2)]
    return min(tried) * loop.config.gradient_accumulation


def time_validation(session: Session) -> float:
    """Seconds of one validation over all images, from the first."""
    if (validation := session.validation) is None:
        return 0.0
    one = validation.images[0]
    numbers = sum(image.latents.numel() for image in validation.images) / one.latents.numel()

    def rows() -> int:
        return min(validation.rows_at_once, TIMESTEPS)

    trial = partial(_seconds, session, lambda: validation.try_out(rows()))
    return measure_within_memory(validation, trial) * numbers * TIMESTEPS / rows()


def time_previews(session: Session) -> float:
    """Seconds of all prompts' images, from the first with two steps; 0 if there is no memory for them."""
    samples = session.recipe.samples
    steps = sampling_of(session.family, samples).steps
    return _time_images(session, samples, samples.prompts[:1], steps) * len(samples.prompts)


def time_drawing(session: Session) -> float:
    """Seconds of the images of one question, from a pass with two steps; 0 if there is no memory for it."""
    recipe, side = session.recipe, session.recipe.data.resolution
    brush, at_once = Brush.like_previews(session.family, recipe.samples, side, ""), drawn_together(side)
    prompts = tuple(one.prompt for one in asked_of(recipe, session.manifest, session.family)[:1])
    steps = sampling_of(session.family, brush.config).steps
    together = prompts * min(recipe.evaluate.seeds, at_once)
    return _time_images(session, brush.config, together, steps) * -(-recipe.evaluate.seeds // at_once)


def questions_left(recipe: Recipe, manifest: Manifest, family: ModelFamily, *, first_step: int = 1) -> int:
    """How often images of a question are still to be drawn for [evaluate], the base's among them."""
    config, steps = recipe.evaluate, recipe.training.steps
    if config.off:
        return 0

    def number(**wanted: object) -> int:
        only = config.model_copy(update={"every": 0, "strengths": (), "at_end": False, **wanted})
        return len(asked_of(recipe.model_copy(update={"evaluate": only}), manifest, family))

    few = number(strengths=(1.0,))
    measured = _at_intervals(first_step, steps, config.every) if config.every else 0
    at_end = number(at_end=True) if config.at_end else 0
    base = len(asked_of(recipe, manifest, family)) if first_step == 1 else 0
    return base + few * (measured + len(config.strengths)) + at_end


def _time_images(session: Session, samples: SamplesConfig, prompts: tuple[str, ...], steps: int) -> float:
    """Seconds of the images of these prompts in so many steps, from two of them."""
    device = session.family.device
    if not prompts:
        return 0.0
    ends: list[float] = []
    trial = samples.model_copy(update={"prompts": prompts, "steps": 2})
    side = session.recipe.data.resolution
    draw = partial(render, session.family, trial, side=side, after_step=lambda: ends.append(_now(device)))
    whole = draw_within_memory(session.family, lambda: _seconds(session, draw))
    if whole is None:
        return 0.0
    return whole + (steps - 2) * (ends[1] - ends[0])


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

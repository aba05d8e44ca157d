"""What will be trained, told before the first step: a section for each subject."""

from __future__ import annotations

from lora_studio.text import Section
from lora_studio.training.events import TrainingPlan
from lora_studio.training.prepare import Session
from lora_studio.training.report.adapters import adapters_section
from lora_studio.training.report.captions import captions_section, image_sections, shapes_section
from lora_studio.training.report.timing import Timing

COMMON_VIEWS = (30, 300)  # how often an image is seen in runs that turn out well


def describe(session: Session, *, first_step: int, timing: Timing) -> TrainingPlan:
    """The plan of a session whose first step is above 1 if it is resumed."""
    model, notes, folder = session.recipe.base.model, session.family.notes, str(session.run.folder)
    sections = (
        Section([("base", model), *(("", note) for note in notes)], {"base": model, "base_notes": notes}),
        *image_sections(session),
        captions_section(session),
        shapes_section(session),
        _steps(session, first_step),
        processes_section(session.processes.count, session.recipe.training.batch_size),
        adapters_section(session.recipe, session.adapters),
        _device(session),
        _learning_rate(session),
        timing.section(),
        Section([("run folder", folder)], {"folder": folder}),
    )
    return TrainingPlan(session.recipe.name, sections)


def _steps(session: Session, first_step: int) -> Section:
    training = session.recipe.training
    views = session.batches.average_views(training.steps)
    images = training.batch_size * training.gradient_accumulation
    start = f", going on at step {first_step}" if first_step > 1 else ""
    seen = f"each image is seen about {views:.0f} times"
    rows = [("steps", f"{training.steps} of {images} images{start}; {seen}")]
    common = "{} to {} times are common".format(*COMMON_VIEWS)
    if views < COMMON_VIEWS[0]:
        rows.append(("", f"that is little: {common}; take more steps or fewer images"))
    if views > COMMON_VIEWS[1]:
        rows.append(("", f"that is a lot: {common}; take fewer steps or more images"))
    data = {"steps": training.steps, "first_step": first_step}
    return Section(rows, data | {"images_per_step": images, "views_per_image": views})


def processes_section(processes: int, batch_size: int) -> Section:
    """What the batch size means to several processes, and how many of them have nothing to do."""
    data = {"processes": processes, "batch_size": batch_size}
    if processes == 1:
        return Section((), data)
    fewest, more = divmod(batch_size, processes)
    each = f"{fewest} or {fewest + 1}" if more else str(fewest)
    together = f"training.batch_size = {batch_size} counts the images of all of them together"
    rows = [("processes", f"{processes}; {together}, so each has {each}")]
    if idle := max(0, processes - batch_size):
        larger = f"take a larger batch: training.batch_size = {processes} gives each an image"
        fault = f"{idle} of the {processes} processes have nothing to train"
        rows.append(("warning", f"{fault}; launch fewer, or {larger}"))
    return Section(rows, data)


def _device(session: Session) -> Section:
    device, dtype = str(session.machine.device), str(session.machine.dtype).removeprefix("torch.")
    row = ("device", f"{device}, base in {dtype}, trained weights in float32")
    return Section([row], {"device": device, "precision": dtype})


def _learning_rate(session: Session) -> Section:
    training, note = session.recipe.training, ""
    rate = training.learning_rate
    if not session.adapters.layers:
        rate = max(token.learning_rate for token in session.recipe.tokens)
    if training.warms_up_to_the_end:
        reached = f"{min(1.0, training.steps / training.warmup):.0%} of this, in the last step"
        note = f"the warm-up takes {training.warmup} steps, so the rate gets to {reached}"
        note += "; training.warmup_steps makes that shorter"
    rows = [("learning rate", f"{rate:g}"), *([("", note)] if note else [])]
    return Section(rows, {"learning_rate": rate, "warmup_note": note})

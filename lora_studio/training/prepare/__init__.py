"""Recipe -> objects. The last place that sees a whole recipe; what it makes gets sections or plain values."""

from __future__ import annotations

from dataclasses import dataclass

from lora_studio.data.conditioning import CaptionSet
from lora_studio.data.doctor.finding import DoctorReport
from lora_studio.evaluate import Validation
from lora_studio.processes import ALONE, Processes
from lora_studio.recipe import Recipe
from lora_studio.runs import Run
from lora_studio.training.context import TrainedRun
from lora_studio.training.events import Listener
from lora_studio.training.loop import Loop
from lora_studio.training.machine import shard
from lora_studio.training.prepare.adapters import plan_adapters
from lora_studio.training.prepare.base_model import BuildContext
from lora_studio.training.prepare.checks import check_recipe
from lora_studio.training.prepare.data import encode, find_images, make_feed, with_regularization_images
from lora_studio.training.prepare.loop import make_loop, make_validation
from lora_studio.training.prepare.resume import apply_recipe_changes


@dataclass
class Session(TrainedRun):
    """A run that is ready to train."""

    report: DoctorReport  # the doctor's, on the images
    loop: Loop
    caption_set: CaptionSet
    validation: Validation | None


def prepare(
    recipe: Recipe, run: Run, listener: Listener, processes: Processes = ALONE, *, resumes: bool = False
) -> Session:
    """Everything up to the first step. Raises a StudioError for whatever the user can mend.

    `resumes`: the run goes on from its checkpoint, so recipe, images and base have to be what it began with.
    """
    checked = check_recipe(recipe, processes, run=run if resumes else None)
    machine, family = checked.machine, checked.family
    if processes.is_main:
        apply_recipe_changes(run, checked.changes, listener)
    context = BuildContext(recipe, run, machine, family, checked.adapters, listener, processes)
    found = find_images(context, resumes=resumes)
    if context.recipe is not recipe:  # its epochs are steps now, by which some of what learns may stop
        recipe = context.recipe
        context.adapters = plan_adapters(recipe, family)
    exact = context.adapters.snapshot_float32(family)
    machine.shrink(family)
    found = with_regularization_images(context, found)
    encoded = encode(context, found)
    if machine.shards:
        shard(family, processes, machine.device, machine.dtype)
    adapters = context.adapters.inject(family, exact)
    machine.speed_up(family, adapters.parts)
    encoders = family.text_encoders if encoded.encodes_captions else ()
    family.place(machine.device, family.denoiser, *encoders)
    loop = make_loop(context, adapters, make_feed(context, found, encoded))
    return Session(
        recipe=recipe,
        run=run,
        machine=machine,
        family=family,
        base_fingerprint=checked.base_fingerprint,
        manifest=found.manifest,
        report=found.report,
        adapters=adapters,
        batches=encoded.batches,
        loop=loop,
        caption_set=encoded.caption_set,
        validation=make_validation(
            context, loop, encoded.validation, encoded.validation_latents, encoded.texts
        ),
        processes=processes,
        inputs=checked.inputs,
    )

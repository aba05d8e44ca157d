"""Recipe -> objects. The last place that sees a recipe; everything it makes gets plain typed values."""

from __future__ import annotations

from dataclasses import dataclass

from lora_studio.data.conditioning import CaptionSet
from lora_studio.data.doctor.finding import DoctorReport
from lora_studio.evaluate.previews import PreviewOptions
from lora_studio.evaluate.validation import Validation
from lora_studio.processes import ALONE, Processes
from lora_studio.recipe import Recipe
from lora_studio.runs.folder import Run
from lora_studio.training.context import TrainedRun
from lora_studio.training.events import Listener
from lora_studio.training.loop import Loop
from lora_studio.training.machine.sharded import is_sharded, shard
from lora_studio.training.optimizers.choose import refuse_optimizer_that_fails
from lora_studio.training.prepare.adapters import inject_adapters, refuse_adapters, snapshot_float32
from lora_studio.training.prepare.base_model import base_of
from lora_studio.training.prepare.checks import check_names, ready_machine
from lora_studio.training.prepare.data import (
    BuildContext,
    encode,
    find_images,
    make_feed,
    with_regularization_images,
)
from lora_studio.training.prepare.loop import make_loop
from lora_studio.training.prepare.rates import refuse_rates
from lora_studio.training.prepare.resume import inputs_of, refuse_other_base
from lora_studio.training.prepare.validation import make_validation


@dataclass
class Session(TrainedRun):
    """A run that is ready to train."""

    report: DoctorReport  # the doctor's, on the images
    loop: Loop
    preview: PreviewOptions
    foreseen: CaptionSet
    validation: Validation | None


def prepare(
    recipe: Recipe, run: Run, listener: Listener, processes: Processes = ALONE, *, resumes: bool = False
) -> Session:
    """Everything up to the first step. Raises a StudioError for whatever the user can mend.

    `resumes`: the run goes on from its checkpoint, so images and base have to be what it began with.
    """
    check_names(recipe)
    machine = ready_machine(recipe, processes)
    refuse_optimizer_that_fails(recipe.training, machine.device)
    family = base_of(recipe)
    refuse_adapters(recipe, family, processes)
    refuse_rates(recipe, family)
    inputs = inputs_of(recipe)
    family.max_chunks = recipe.data.max_token_chunks
    site = BuildContext(recipe, run, machine, family, listener, processes)
    found = find_images(site, resumes=resumes)
    recipe = site.recipe  # its epochs are steps now
    fingerprint, exact = family.fingerprint(family.denoiser), snapshot_float32(recipe, family)
    if resumes:
        processes.from_main(lambda: refuse_other_base(run, recipe, fingerprint))
    machine.shrink(family)
    found = with_regularization_images(site, found)
    encoded = encode(site, found)
    if is_sharded(recipe, processes):
        shard(family, processes, machine.device, machine.dtype)
    adapters = inject_adapters(recipe, family, exact)
    machine.speed_up(family, adapters.parts)
    encoders = family.text_encoders if encoded.encodes_captions else ()
    family.place(machine.device, family.denoiser, *encoders)
    feed = make_feed(site, found, encoded)
    loop = make_loop(recipe, run, machine, family, adapters, feed, listener, processes)
    validation = make_validation(
        recipe,
        encoded.held,
        encoded.held_latents,
        encoded.texts,
        family,
        loop.objective,
        autocast=machine.autocast,
    )
    return Session(
        recipe=recipe,
        run=run,
        machine=machine,
        family=family,
        base_fingerprint=fingerprint,
        manifest=found.manifest,
        report=found.report,
        adapters=adapters,
        batches=encoded.batches,
        loop=loop,
        preview=preview_of(recipe),
        foreseen=encoded.foreseen,
        validation=validation,
        processes=processes,
        inputs=inputs,
    )


def preview_of(recipe: Recipe) -> PreviewOptions:
    """What it wants to be drawn."""
    config = recipe.samples
    side = recipe.data.resolution
    return PreviewOptions(
        config.prompts, config.negative_prompt, config.seed, config.steps, config.guidance, side
    )

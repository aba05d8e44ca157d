"""Recipe -> objects. The last place that sees a recipe; everything it makes gets plain typed values."""

from __future__ import annotations

from dataclasses import dataclass

from lora_studio.adapters import ADAPTERS
from lora_studio.data.captioners import CAPTIONERS
from lora_studio.data.doctor.finding import Report
from lora_studio.errors import RecipeError
from lora_studio.processes import ALONE, Processes
from lora_studio.quantization import QUANTIZERS
from lora_studio.recipe import Recipe
from lora_studio.recipe_tokens import NO_ADAPTER
from lora_studio.recipe_training import TrainingConfig
from lora_studio.run import Run
from lora_studio.training.base import base_of
from lora_studio.training.build_adapters import inject_adapters, refuse_adapters, unrounded
from lora_studio.training.build_data import Site, encode, find_pictures, make_feed, with_class_images
from lora_studio.training.build_holdout import make_holdout
from lora_studio.training.build_loop import make_loop
from lora_studio.training.captions import Foreseen
from lora_studio.training.events import Listener
from lora_studio.training.holdout import Holdout
from lora_studio.training.loop import Loop
from lora_studio.training.machine import Machine, machine_of
from lora_studio.training.optimizer_choice import optimizer_faults, refuse_optimizer_that_fails
from lora_studio.training.preview import PreviewOptions
from lora_studio.training.rates import refuse_rates
from lora_studio.training.resume import inputs_of
from lora_studio.training.resume_pictures import refuse_other_base
from lora_studio.training.schedule import make_schedule
from lora_studio.training.self_test import refuse_what_fails
from lora_studio.training.sharded import is_sharded, shard
from lora_studio.training.tracking import tracker_faults
from lora_studio.training.trained import Trained


@dataclass
class Session(Trained):
    """A run that is ready to train."""

    report: Report  # the doctor's, on the pictures
    loop: Loop
    preview: PreviewOptions
    foreseen: Foreseen
    holdout: Holdout | None


def check_names(recipe: Recipe) -> None:
    """Raise RecipeError listing every name of the recipe that its table does not know."""
    wanted = [
        (CAPTIONERS, recipe.data.captioner),
        (QUANTIZERS, recipe.base.quantize),
    ]
    if recipe.adapter.kind != NO_ADAPTER:
        wanted.append((ADAPTERS, recipe.adapter.kind))
    faults = tracker_faults(recipe.tracking.to) + optimizer_faults(recipe) + schedule_faults(recipe.training)
    for table, name in wanted:
        try:
            table.check(name)  # type: ignore[attr-defined]
        except RecipeError as error:
            faults.append(str(error))
    if faults:
        raise RecipeError("\n".join(faults))


def schedule_faults(training: TrainingConfig) -> list[str]:
    """What is wrong with the schedule and its warm-up, a sentence each.

    The usual warm-up never is: short trials have it, and recipes as run have it written out.
    """
    faults = []
    try:
        make_schedule(training.schedule, training.schedule_floor)
    except RecipeError as error:
        faults.append(str(error))
    usual = TrainingConfig.model_fields["warmup_steps"].default
    if training.warms_up_to_the_end and training.warmup_steps != usual:
        faults.append(
            f"training.warmup_steps is {training.warmup_steps:g}, but there are only {training.steps} steps, "
            "so the learning rate would rise to the last one; make it smaller, or give more steps."
        )
    return faults


def prepare(
    recipe: Recipe, run: Run, listener: Listener, processes: Processes = ALONE, *, resumes: bool = False
) -> Session:
    """Everything up to the first step. Raises a StudioError for whatever the user can mend.

    `resumes`: the run goes on from its checkpoint, so pictures and base have to be what it began with.
    """
    check_names(recipe)
    machine = ready_machine(recipe, processes)
    refuse_optimizer_that_fails(recipe.training, machine.device)
    family = base_of(recipe)
    refuse_adapters(recipe, family, processes)
    refuse_rates(recipe, family)
    inputs = inputs_of(recipe)
    family.max_chunks = recipe.data.max_token_chunks
    site = Site(recipe, run, machine, family, listener, processes)
    found = find_pictures(site, resumes=resumes)
    fingerprint, exact = family.fingerprint(family.denoiser), unrounded(recipe, family)
    if resumes:
        processes.from_main(lambda: refuse_other_base(run, recipe, fingerprint))
    machine.shrink(family)
    found = with_class_images(site, found)
    encoded = encode(site, found)
    if is_sharded(recipe, processes):
        shard(family, processes, machine.device, machine.dtype)
    adapters = inject_adapters(recipe, family, exact)
    machine.speed_up(family, adapters.parts)
    encoders = family.text_encoders if encoded.encodes_captions else ()
    family.place(machine.device, family.denoiser, *encoders)
    feed = make_feed(site, found, encoded)
    loop = make_loop(recipe, run, machine, family, adapters, feed, listener, processes)
    holdout = make_holdout(
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
        holdout=holdout,
        processes=processes,
        inputs=inputs,
    )


def ready_machine(recipe: Recipe, processes: Processes = ALONE) -> Machine:
    """What the recipe asks for. Raises RecipeError if that is not there, or an option does not work on it."""
    wishes = recipe.machine
    if processes.device:
        wishes = wishes.model_copy(update={"device": processes.device})
    machine = machine_of(wishes, recipe.base.dtype, recipe.base.quantize)
    refuse_what_fails(machine)
    return machine


def preview_of(recipe: Recipe) -> PreviewOptions:
    """What it wants to be drawn."""
    config = recipe.preview
    side = recipe.data.resolution
    return PreviewOptions(
        config.prompts, config.negative_prompt, config.seed, config.steps, config.guidance, side
    )

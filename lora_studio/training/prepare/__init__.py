"""Recipe -> objects. The last place that sees a whole recipe; what it makes gets sections or plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.data.batches import BatchPlan
from lora_studio.data.conditioning import CaptionSet
from lora_studio.data.doctor.finding import DoctorReport
from lora_studio.data.feed import Feed, geometry
from lora_studio.data.manifest import Manifest
from lora_studio.evaluate.validation import Validation, ValidationImage, best_step
from lora_studio.families.base import ModelFamily
from lora_studio.families.freed import return_freed_memory
from lora_studio.processes import ALONE, Processes
from lora_studio.recipe import Recipe
from lora_studio.recipe.training import MOST_BLOCKS
from lora_studio.runs import CHOICE, Run
from lora_studio.training.events import Listener, Note
from lora_studio.training.loop import Loop
from lora_studio.training.loop.state import Ema, State, state_files
from lora_studio.training.machine import Machine, Waiting, shard
from lora_studio.training.machine.offload import BlockOffload, offload, offload_text
from lora_studio.training.machine.self_test import choose_compile
from lora_studio.training.optimizers.choose import (
    is_elementwise,
    make_optimizer,
    optimizer_bytes,
    parameter_groups,
)
from lora_studio.training.prepare.base_model import AdapterPlan, BuildContext, objective_of, plan_adapters
from lora_studio.training.prepare.checks import check_recipe
from lora_studio.training.prepare.data import (
    EncodedSet,
    encode,
    find_images,
    make_feed,
    with_regularization_images,
)
from lora_studio.training.prepare.dataset import loss_masks, validation_captions
from lora_studio.training.prepare.resume import apply_recipe_changes


@dataclass
class TrainedRun:
    """A base with adapters in it, in training or after it, and all that its files are made of."""

    recipe: Recipe
    run: Run
    machine: Machine
    family: ModelFamily
    base_fingerprint: str
    manifest: Manifest
    adapters: AdapterSet
    processes: Processes
    batches: BatchPlan
    inputs: Mapping[str, str]  # option -> sha256 of the LoRA file that it names, or of weights
    whole_base: str = field(default="", kw_only=True)  # a fingerprint, if it was wanted: see `Brush.base`
    offloaded: BlockOffload | None = field(default=None, kw_only=True)  # if blocks lie in main memory


@dataclass
class Session(TrainedRun):
    """A run that is ready to train."""

    report: DoctorReport  # the doctor's, on the images
    loop: Loop
    caption_set: CaptionSet
    validation: Validation | None


def all_blocks(recipe: Recipe, machine: Machine, room: int = 0) -> Waiting:
    """More than any base has."""
    return Waiting(MOST_BLOCKS, MOST_BLOCKS)


def prepare(
    recipe: Recipe,
    run: Run,
    listener: Listener,
    processes: Processes = ALONE,
    *,
    resumes: bool = False,
    choose_offload: Callable[[Recipe, Machine], Waiting] = all_blocks,
) -> Session:
    """Everything up to the first step. Raises a StudioError for whatever the user can mend.

    `resumes`: the run goes on from its checkpoint, so recipe, images and base have to be what it began with.
    `choose_offload`: says how many blocks "auto" means for a recipe on a machine.
    """
    checked = check_recipe(recipe, processes, run=run if resumes else None)
    machine, family = checked.machine, checked.family
    if processes.is_main:
        apply_recipe_changes(run, checked.changes, listener)
    context = BuildContext(recipe, run, machine, family, checked.adapters, listener, processes, resumes)
    found = find_images(context)
    machine = context.machine = _decided(context, recipe, choose_offload)
    recipe = context.recipe
    exact = context.adapters.snapshot_float32(family)
    if not family.is_awaited(family.denoiser):
        machine.shrink(family)
    found = with_regularization_images(context, found)
    encoded = encode(context, found)
    encodes_captions = encoded.texts is None or not encoded.caption_set.complete  # while it trains
    if family.staged or (recipe.evaluate.off and not recipe.samples.prompts):
        family.drop("vae", *(() if encodes_captions else family.text_encoders))
        return_freed_memory()
    if family.is_awaited(family.denoiser):  # until nothing else is in memory
        machine.shrink(family)
    if machine.shards:
        shard(family, processes, machine.device, machine.dtype)
    adapters = context.adapters.inject(family, exact)
    helper = context.adapters.attach_training_adapter(family, machine.dtype)
    machine.speed_up(family, adapters.parts)
    offloaded = offload(family, machine, adapters.joined)
    family.place(machine.device, family.denoiser, *(family.text_encoders if encodes_captions else ()))
    loop = make_loop(context, adapters, make_feed(context, found, encoded))
    loop.beside = helper.beside
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
        validation=make_validation(context, loop, encoded),
        processes=processes,
        inputs=checked.inputs,
        whole_base=context.whole_base,
        offloaded=offloaded,
    )


def _decided(
    context: BuildContext, recipe: Recipe, choose_offload: Callable[[Recipe, Machine], Waiting]
) -> Machine:
    """The machine without "auto"; and what learns, if the recipe has steps now in place of epochs."""
    machine, training = context.machine, context.recipe.training
    if context.recipe is not recipe:  # some of what learns may stop by its steps
        context.adapters = plan_adapters(context.recipe, context.family)
    machine = choose_compile(machine, training.steps * training.gradient_accumulation)
    if machine.offloads and machine.config.offload_blocks == "auto":
        machine = machine.with_offload(choose_offload(context.recipe, machine))
        offload_text(context.family, machine)
    return machine


def make_state(recipe: Recipe, machine: Machine, plan: AdapterPlan, adapters: AdapterSet) -> State:
    """What a checkpoint holds, at its start."""
    training = recipe.training
    stacked, faster = is_elementwise(training.optimizer), recipe.adapter.lora_plus_ratio
    groups = parameter_groups(adapters, plan.part_rates, faster=faster, stacked=stacked)
    ema = Ema(adapters, training.ema) if training.ema else None
    return State(adapters, make_optimizer(training, groups), ema, machine.scaler)


def make_loop(context: BuildContext, adapters: AdapterSet, feed: Feed) -> Loop:
    """The loop that the recipe asks for, at its start."""
    recipe, run, machine, processes = context.recipe, context.run, context.machine, context.processes
    state = make_state(recipe, machine, context.adapters, adapters)
    # so that the trial step, which finds in how many passes a batch fits, has no more room than the others
    num_bytes = optimizer_bytes(recipe.training, adapters)
    state.reserved = torch.empty(num_bytes, dtype=torch.uint8, device=context.family.device)

    def write(step: int) -> None:
        best, keep = best_step(run.measurements()), recipe.training.keep_checkpoints
        files = state_files(state, measured=run.measured_until(step) if best is not None else "")
        wanted = {best, recipe.export.checkpoint, *(row["step"] for row in run.measurements(CHOICE))}
        run.checkpoint(step, files, keep=keep, best=[one for one in wanted if isinstance(one, int)])

    def save(step: int) -> None:
        processes.from_main(lambda: write(step))
        context.listener(Note(f"checkpoint at step {step}"))

    return Loop(
        family=context.family,
        state=state,
        objective=objective_of(recipe, context.family).to(machine.device),
        feed=feed,
        config=recipe.training,
        machine=machine,
        save=save,
        record=run.metric,
        listener=context.listener,
        processes=processes,
        reads_late=machine.device.type == "cuda",
    )


def make_validation(context: BuildContext, loop: Loop, encoded: EncodedSet) -> Validation | None:
    """None if there is nothing to measure."""
    if not (records := encoded.validation):
        return None
    device, captions = context.family.device, validation_captions(context.recipe, records)
    latents = encoded.latents[len(encoded.views) :]
    masks = [torch.ones(1, 1) if mask is None else mask.inside for mask in loss_masks(records, latents)]
    images = [
        ValidationImage(
            name=record.name,
            sha256=record.sha256,
            caption=caption,
            latents=latent.mean.to(device),
            geometry=torch.tensor(geometry(record), device=device),
            weight=mask.to(device),
        )
        for record, caption, latent, mask in zip(records, captions, latents, masks, strict=True)
    ]
    rows, autocast = context.recipe.training.batch_size, context.machine.autocast
    texts, objective = encoded.texts, loop.objective
    return Validation(images, texts, context.family, objective, autocast=autocast, rows_at_once=rows)

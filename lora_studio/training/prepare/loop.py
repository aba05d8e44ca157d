"""Recipe -> the loop, what it saves, and what measures the loss on validation images."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.data.cache.latents import Latent
from lora_studio.data.conditioning import ConditioningCache
from lora_studio.data.feed import Feed, geometry
from lora_studio.data.manifest import Record
from lora_studio.evaluate import Validation, ValidationImage, best_step
from lora_studio.objectives.diffusion import ObjectiveOptions
from lora_studio.recipe import Recipe
from lora_studio.runs import VALIDATION
from lora_studio.training.events import Note
from lora_studio.training.loop import Loop
from lora_studio.training.loop.state import Ema, State, state_files
from lora_studio.training.machine import Machine
from lora_studio.training.optimizers.choose import make_optimizer, parameter_groups
from lora_studio.training.prepare.adapters import AdapterPlan
from lora_studio.training.prepare.base_model import BuildContext
from lora_studio.training.prepare.dataset import loss_masks, validation_captions


def make_state(recipe: Recipe, machine: Machine, plan: AdapterPlan, adapters: AdapterSet) -> State:
    """What a checkpoint holds, at its start."""
    training = recipe.training
    groups = parameter_groups(adapters, plan.part_rates, faster=plan.lora_plus_ratio)
    ema = Ema(adapters, training.ema) if training.ema else None
    return State(adapters, make_optimizer(training, groups), ema, machine.scaler)


def make_loop(context: BuildContext, adapters: AdapterSet, feed: Feed) -> Loop:
    """The loop that the recipe asks for, at its start."""
    recipe, run, machine, processes = context.recipe, context.run, context.machine, context.processes
    state = make_state(recipe, machine, context.adapters, adapters)

    def save(step: int) -> None:
        def write() -> None:
            best = best_step(run.lines(VALIDATION))
            keep = recipe.training.keep_checkpoints
            run.checkpoint(step, state_files(state), keep=keep, best=[] if best is None else [best])

        processes.from_main(write)
        context.listener(Note(f"checkpoint at step {step}"))

    of_the_feed = {"preservation", "masked_preservation"}
    objective = ObjectiveOptions(**recipe.objective.model_dump(exclude=of_the_feed))
    return Loop(
        family=context.family,
        state=state,
        objective=context.family.objective(objective),
        feed=feed,
        config=recipe.training,
        machine=machine,
        save=save,
        record=run.metric,
        listener=context.listener,
        processes=processes,
    )


def make_validation(
    context: BuildContext,
    loop: Loop,
    records: Sequence[Record],
    latents: Sequence[Latent],
    texts: ConditioningCache | None,
) -> Validation | None:
    """None if there is nothing to measure."""
    if not records:
        return None
    device = context.family.device
    captions = validation_captions(context.recipe, records)
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
    return Validation(images, texts, context.family, loop.objective, autocast=autocast, rows_at_once=rows)

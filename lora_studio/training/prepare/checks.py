"""Every refusal of a recipe that needs no image."""

from __future__ import annotations

from lora_studio.adapters import ADAPTERS
from lora_studio.data.captioners import CAPTIONERS
from lora_studio.errors import RecipeError
from lora_studio.processes import ALONE, Processes
from lora_studio.quantization import QUANTIZERS
from lora_studio.recipe import Recipe
from lora_studio.recipe.tokens import NO_ADAPTER
from lora_studio.recipe.training import TrainingConfig
from lora_studio.training.machine import Machine, machine_of
from lora_studio.training.machine.self_test import refuse_what_fails
from lora_studio.training.optimizers.choose import optimizer_faults
from lora_studio.training.optimizers.schedule import make_schedule
from lora_studio.training.tracking import tracker_faults


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
        make_schedule(training.lr_schedule, training.lr_schedule_floor)
    except RecipeError as error:
        faults.append(str(error))
    usual = TrainingConfig.model_fields["warmup_steps"].default
    if training.warms_up_to_the_end and training.warmup_steps != usual:
        faults.append(
            f"training.warmup_steps is {training.warmup_steps:g}, but there are only {training.steps} steps, "
            "so the learning rate would rise to the last one; make it smaller, or give more steps."
        )
    return faults


def ready_machine(recipe: Recipe, processes: Processes = ALONE) -> Machine:
    """What the recipe asks for. Raises RecipeError if that is not there, or an option does not work on it."""
    wishes = recipe.machine
    if processes.device:
        wishes = wishes.model_copy(update={"device": processes.device})
    machine = machine_of(wishes, recipe.base.dtype, recipe.base.quantize)
    refuse_what_fails(machine)
    return machine

"""Recipe -> the loop, its optimizer and what it saves."""

from __future__ import annotations

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.data.feed import Feed
from lora_studio.evaluate.validation import best_step
from lora_studio.families.base import ModelFamily
from lora_studio.objectives.diffusion import ObjectiveOptions
from lora_studio.processes import Processes
from lora_studio.recipe import Recipe
from lora_studio.runs.folder import VALIDATION, Run
from lora_studio.training.events import Listener, Note
from lora_studio.training.loop import Loop, LoopOptions
from lora_studio.training.loop.checkpoint import state_files
from lora_studio.training.loop.ema import Ema
from lora_studio.training.loop.state import State
from lora_studio.training.machine import Machine
from lora_studio.training.machine.sharded import is_sharded
from lora_studio.training.optimizers import parameter_groups
from lora_studio.training.optimizers.choose import make_optimizer, options_of
from lora_studio.training.optimizers.schedule import make_schedule


def make_state(recipe: Recipe, machine: Machine, family: ModelFamily, adapters: AdapterSet) -> State:
    """What a checkpoint holds, at its start."""
    training = recipe.training
    rates = {part: training.text_encoder_learning_rate for part in adapters.parts} | {
        family.denoiser: training.learning_rate
    }
    groups = parameter_groups(adapters, rates, faster=recipe.adapter.lora_plus_ratio)
    optimizer = make_optimizer(options_of(training), groups)
    ema = Ema(adapters, training.ema) if training.ema else None
    return State(adapters, optimizer, ema, machine.scaler)


def make_loop(
    recipe: Recipe,
    run: Run,
    machine: Machine,
    family: ModelFamily,
    adapters: AdapterSet,
    feed: Feed,
    listener: Listener,
    processes: Processes,
) -> Loop:
    """The loop that the recipe asks for, at its start."""
    training, state = recipe.training, make_state(recipe, machine, family, adapters)

    def save(step: int) -> None:
        def write() -> None:
            best = best_step(run.lines(VALIDATION))
            run.checkpoint(
                step, state_files(state), keep=training.keep_checkpoints, best=[] if best is None else [best]
            )

        processes.from_main(write)
        listener(Note(f"checkpoint at step {step}"))

    return Loop(
        family=family,
        state=state,
        objective=family.objective(_objective_options(recipe)),
        feed=feed,
        options=LoopOptions(
            steps=training.steps,
            gradient_accumulation=training.gradient_accumulation,
            schedule=make_schedule(training.lr_schedule, training.lr_schedule_floor),
            warmup_steps=training.warmup,
            max_grad_norm=training.max_grad_norm,
            seed=training.seed,
            autocast=machine.autocast,
            checkpoint_every=training.checkpoint_every,
            max_skipped_steps=training.max_skipped_steps,
        ),
        save=save,
        record=run.metric,
        listener=listener,
        processes=processes,
        sharded=is_sharded(recipe, processes),
        reads_late=machine.device.type == "cuda",
    )


def _objective_options(recipe: Recipe) -> ObjectiveOptions:
    """What the objective itself is to know; the others are the feed's."""
    of_the_feed = {"preservation", "masked_preservation"}
    return ObjectiveOptions(**recipe.objective.model_dump(exclude=of_the_feed))

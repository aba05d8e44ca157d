"""`lora-studio choose`: the best checkpoint of a run that is over or stopped, and the strengths of use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_studio.errors import CheckpointError, RecipeError, StudioError, reason_of
from lora_studio.evaluate.artist import Brush
from lora_studio.evaluate.choosing import Choice, choose
from lora_studio.evaluate.choosing.strength import StrengthChoice
from lora_studio.families.base import ModelFamily
from lora_studio.recipe import Recipe
from lora_studio.recipe.evaluate import EvaluateConfig
from lora_studio.runs import Run, step_of
from lora_studio.tools import Report
from lora_studio.training.evaluating.artist import TrainedArtist
from lora_studio.training.evaluating.asked import RunMeasures
from lora_studio.training.evaluating.choice_watch import ChoiceWatch
from lora_studio.training.evaluating.grid import (
    CHECKPOINTS_GRID,
    STRENGTHS_GRID,
    grid_of,
    of_checkpoints,
    of_strengths,
)
from lora_studio.training.evaluating.taken import measure_strengths
from lora_studio.training.events import Listener, Note, ignore_events
from lora_studio.training.finish.export import finished_recipe, revive
from lora_studio.training.machine import is_out_of_memory, out_of_memory


@dataclass(frozen=True)
class ChoiceRequest:
    """What is measured; what is None is as the run's recipe has it."""

    changes: dict[str, Any]  # of [evaluate]: option -> value
    grid: bool = False
    device: str = ""


@dataclass(frozen=True)
class RunChoice(Report):
    """What was found, and the files that tell it."""

    choice: Choice
    strengths: StrengthChoice | None
    files: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        strengths = None if self.strengths is None else self.strengths.to_json()
        return {"best": self.choice.to_json(), "strengths": strengths, "files": list(self.files)}


def choose_of_run(folder: Path, request: ChoiceRequest, *, on_event: Listener = ignore_events) -> RunChoice:
    """Measure all checkpoints that a run has kept, and write best.json, and strengths.json if it is wanted.

    What was measured with the same questions before is not measured again. Raises StudioError for what the
    user can mend, before anything is drawn.
    """
    run = Run(folder)
    recipe = _recipe_of(run, request)
    if not (steps := [step_of(path) for path in run.checkpoints()]):
        raise CheckpointError(f"there is no checkpoint in {folder}; there is nothing to choose from yet.")
    run.lock()
    try:
        on_event(Note("reading the base"))
        return _choose(run, recipe, steps, request, on_event)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(f"while images were drawn ({reason_of(error)})") from None
    finally:
        run.close()
        run.unlock()


def _recipe_of(run: Run, request: ChoiceRequest) -> Recipe:
    recipe = finished_recipe(run)
    values = recipe.evaluate.model_dump() | {"every": 1} | request.changes
    try:
        evaluate = EvaluateConfig.model_validate(values)
    except ValueError as error:
        raise RecipeError(f"[evaluate] cannot have that: {reason_of(error)}.") from None
    machine = recipe.machine.model_copy(update={"device": request.device} if request.device else {})
    return recipe.model_copy(update={"evaluate": evaluate, "machine": machine})


def _choose(
    run: Run, recipe: Recipe, steps: list[int], request: ChoiceRequest, listener: Listener
) -> RunChoice:
    base = list[str]()

    def look(family: ModelFamily) -> None:
        base.append(family.drawing_fingerprint())

    trained, state = revive(run, recipe, on_base=look)
    brush = Brush.like_previews(trained.family, recipe.samples, recipe.data.resolution, base[0])
    option = "--images" if "images" in request.changes else "evaluate.images"
    measures = RunMeasures(TrainedArtist(trained, state, brush), listener, option=option)
    measures.check()
    brush.keep_texts(measures.questions(recipe.evaluate.checkpoint_prompts))
    watch = ChoiceWatch(recipe.evaluate, measures, run, max(steps), listener)
    watch.begin(max(steps))
    choice = choose(watch.candidates(), watch.budget, measures.facts)
    if choice is None or choice.taken.variant.step is None:
        why = "; ".join(measures.material.compared_with[2]) or "the encoder tells too little"
        raise StudioError(f"fidelity could not be measured of any checkpoint in {run.folder}: {why}.")
    files, step = [str(run.folder / "best.json")], choice.taken.variant.step
    strengths = measure_strengths(step, measures, run, listener)
    if strengths is not None:
        wanted = of_strengths(step, recipe.evaluate.strengths)
        files.append(str(run.file(STRENGTHS_GRID, grid_of(measures, wanted))))
    if request.grid:
        files.append(str(run.file(CHECKPOINTS_GRID, grid_of(measures, of_checkpoints(steps)))))
    return RunChoice(choice, strengths, tuple(files))

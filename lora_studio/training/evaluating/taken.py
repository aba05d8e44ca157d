"""What a run's file is made of: one of its checkpoints, and what the file says of that and of strengths."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from lora_studio.evaluate.choosing import Budget, candidate_of
from lora_studio.evaluate.choosing.strength import StrengthChoice, choose_strength
from lora_studio.evaluate.result import Variant
from lora_studio.evaluate.validation import best_step
from lora_studio.metadata.write import CHECKPOINT, STRENGTH_RANGE, TrainingFacts
from lora_studio.recipe import Recipe
from lora_studio.recipe.training import ExportConfig
from lora_studio.runs import BEST, Run
from lora_studio.runs.reading import read_sealed, sealed
from lora_studio.training.evaluating.artist import strength_fault
from lora_studio.training.evaluating.asked import RunMeasures
from lora_studio.training.evaluating.grid import STRENGTHS_GRID, grid_of, of_strengths
from lora_studio.training.events import Listener, Note
from lora_studio.training.loop.state import Counters, load_state
from lora_studio.training.loop.watch import draw_within_memory
from lora_studio.training.prepare import Session

STRENGTHS = "strengths.json"  # in a run's folder
BY_EVALUATION = "by evaluation"


@dataclass(frozen=True)
class Taken:
    """The checkpoint that the file is made of."""

    step: int
    ended: Counters  # as they were after the last step
    why: str = ""  # empty: it is the last one, and nothing was chosen
    strengths: StrengthChoice | None = None

    def told(self, facts: TrainingFacts, recipe: Recipe) -> TrainingFacts:
        """The facts of the file with it; a strength that the recipe names stays."""
        facts = replace(facts, steps=self.step)
        if self.why:
            said = f"step {self.step} of {self.ended.step}, {self.why}"
            facts = replace(facts, options={**facts.options, CHECKPOINT: said})
        if self.strengths is None:
            return facts
        if self.strengths.lowest is not None:
            usable = f"{self.strengths.lowest:g} to {self.strengths.highest:g}"
            facts = replace(facts, options={**facts.options, STRENGTH_RANGE: usable})
        if recipe.export.strength == ExportConfig.model_fields["strength"].default:
            facts = replace(facts, strength=self.strengths.recommended)
        return facts


def wanted_step(recipe: Recipe, run: Run, last: int) -> tuple[int, str]:
    """The step that the recipe asks for, and by what; of a run that ended early it may be beyond its end."""
    wanted: int | str = recipe.export.checkpoint
    if wanted == "auto":
        wanted = "best" if recipe.evaluate.choose else "last"
    if isinstance(wanted, int):
        return min(wanted, last), "as the recipe says" if wanted != last else ""
    if wanted == "best":
        if (step := run.chosen_step()) is not None:
            return step, BY_EVALUATION
        if (step := best_step(run.measurements())) is not None:
            return step, "by the validation loss"
    return last, ""


def take(session: Session, measures: RunMeasures | None, listener: Listener) -> Taken:
    """Have the adapters hold what the file is made of, and measure the strengths that the recipe names.

    Raises CheckpointError if the checkpoint that was chosen is damaged or gone.
    """
    recipe, run, state, processes = session.recipe, session.run, session.loop.state, session.processes
    ended = state.counters
    step, why = processes.from_main(lambda: wanted_step(recipe, run, ended.step))
    if step != ended.step:
        with processes.folder_of_main(run.checkpoint_of(step)) as folder:
            load_state(folder, state)
    if why:
        reason = f": {read_sealed(run.folder / BEST)['why']}" if why == BY_EVALUATION else ""
        listener(Note(f"the file is made of step {step} of {ended.step}, {why}{reason}"))
    strengths = None if measures is None else measure_strengths(step, measures, run, listener)
    if strengths is not None and measures is not None:
        sheet = grid_of(measures, of_strengths(step, recipe.evaluate.strengths))
        run.file(STRENGTHS_GRID, sheet)
    return Taken(step, ended, why, strengths)


def measure_strengths(
    step: int, measures: RunMeasures, run: Run, listener: Listener
) -> StrengthChoice | None:
    """Those of [evaluate] on a checkpoint, into `strengths.json`; None if it names none.

    None, too, and a note, if they cannot be shown, or not be drawn in the memory that there is.
    """
    trained, config = measures.artist.trained, measures.recipe.evaluate
    if fault := strength_fault(trained, config.strengths):
        listener(Note(f"no strengths were measured: {fault}"))
        return None
    candidates = []
    for strength in config.strengths:
        found = draw_within_memory(trained.family, partial(measures.measure, Variant(step, strength)))
        if found is not None:
            candidates.append(candidate_of(found))
    chosen = choose_strength(candidates, Budget(config.drift, config.leakage))
    if chosen is not None:
        run.json(STRENGTHS, sealed(chosen.to_json()))
        listener(Note(chosen.in_words))
    elif config.strengths:
        listener(Note("no strength could be measured"))
    return chosen

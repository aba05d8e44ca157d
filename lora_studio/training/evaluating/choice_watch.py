"""While a run trains: checkpoints are measured, and the best so far is named."""

from __future__ import annotations

from dataclasses import dataclass

from lora_studio.evaluate.choosing import (
    Budget,
    Candidate,
    candidate_of,
    choose,
    measured_candidate,
    measured_in_vain,
)
from lora_studio.evaluate.result import Variant
from lora_studio.processes import ALONE, Processes
from lora_studio.recipe.evaluate import EvaluateConfig
from lora_studio.runs import BEST, CHOICE, Run, step_of
from lora_studio.runs.reading import damaged, sealed
from lora_studio.training.evaluating.asked import RunMeasures
from lora_studio.training.events import Listener, Note
from lora_studio.training.loop.watch import draw_within_memory

ASKED = "asked"  # in a line: a hash of all that its figures depend on beside the checkpoint


@dataclass
class ChoiceWatch:
    """Measures every `config.every` steps and after the last; what it measures is saved, and kept."""

    config: EvaluateConfig
    measures: RunMeasures
    run: Run
    steps: int
    listener: Listener
    processes: Processes = ALONE
    _enough: bool = False

    @property
    def budget(self) -> Budget:
        return Budget(self.config.drift, self.config.leakage)

    def begin(self, step: int = 0) -> None:
        """Before the first step, or at the `step` that a resumed run goes on from.

        Checkpoints that were not measured yet, or with other questions, are loaded and measured, and the
        state of `step` is put back.
        """
        wanted = self.processes.from_main(self._unmeasured) if step else []
        for one in wanted:
            self._measure(one)
        if wanted:
            self.measures.artist.load(step)
        if step:
            self._enough = self.processes.from_main(self._decide)

    def _unmeasured(self) -> list[int]:
        self.run.forget_where(CHOICE, lambda row: row.get(ASKED) == self.measures.hashed)
        measured = {row["step"] for row in self.run.measurements(CHOICE)}
        steps = [step_of(path) for path in self.run.checkpoints()]
        return [step for step in steps if self.due(step) and step not in measured]

    def due(self, step: int) -> bool:
        return step > 0 and (step % self.config.every == 0 or step == self.steps)

    def after_step(self, step: int) -> bool:
        """Measure if it is time; whether it was, and a checkpoint has to be kept of it."""
        if not self.due(step):
            return False
        self._measure(step)
        self._enough = self.processes.from_main(self._decide)
        return True

    def _measure(self, step: int) -> None:
        """A line of `choice.jsonl`; none, and a note, if there is not enough memory to draw."""
        family = self.measures.artist.trained.family
        found = draw_within_memory(family, lambda: self.measures.measure(Variant(step)))
        if found is None:
            self.listener(Note(f"warning: step {step} could not be measured: the memory ran out"))
            return
        row = candidate_of(found).to_json() | {ASKED: self.measures.hashed}
        self.processes.from_main(lambda: self.run.append(CHOICE, row))

    def _decide(self) -> bool:
        """Write the choice down; whether `config.patience` checkpoints in a row were no better one."""
        candidates, patience = self.candidates(), self.config.patience
        if (choice := choose(candidates, self.budget, self.measures.facts)) is not None:
            self.run.json(BEST, sealed(choice.to_json()))
            if choice.taken == candidates[-1]:
                self.listener(Note(f"the best checkpoint so far is {choice.why}"))
        in_vain = measured_in_vain(candidates, self.budget)
        if enough := bool(patience) and in_vain >= patience:
            self.listener(Note(f"the last {in_vain} measured checkpoints are no better choice: it is enough"))
        return enough

    def candidates(self) -> list[Candidate]:
        """In the order of their steps. Raises CheckpointError for a line that the run did not write."""
        try:
            found = [measured_candidate(row) for row in self.run.measurements(CHOICE)]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise damaged(self.run.folder / CHOICE, repr(error)) from None
        return sorted(found, key=lambda one: one.variant.step or 0)

    def is_enough(self) -> bool:
        """Whether the run ends before its last step."""
        return self._enough

"""What is looked at while a run trains: the loss on held-out pictures, and previews."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from lora_studio.families.base import ModelFamily
from lora_studio.processes import ALONE, Processes
from lora_studio.run import Run
from lora_studio.training.events import HoldoutMeasured, Listener, PreviewsDrawn
from lora_studio.training.holdout import Holdout, Reading, best_step
from lora_studio.training.preview import PreviewOptions, as_png, grid, render
from lora_studio.training.state import State

HOLDOUT = "holdout.jsonl"  # a line a measurement


@dataclass
class HoldoutWatch:
    """Measures before the first step, then every `every` steps and after the last."""

    holdout: Holdout
    state: State
    run: Run
    every: int
    steps: int
    listener: Listener
    processes: Processes = ALONE

    def begin(self) -> None:
        """Measure the base, and the state of step 0 unless a run that is resumed has its line already."""
        with self.state.adapters.disabled():
            self.holdout.measure_base()
        if self.processes.from_main(lambda: not self.run.lines(HOLDOUT)):
            with self.state.shown():
                reading = self.holdout.measure(0)
            self._write(reading)

    def due(self, step: int) -> bool:
        """Whether it is time after this step."""
        return step % self.every == 0 or step == self.steps

    def after_step(self, step: int) -> bool:
        """Measure if it is time; whether this is the best so far."""
        if not self.due(step):
            return False
        with self.state.shown():
            reading = self.holdout.measure(step)
        return self._write(reading)

    def _write(self, reading: Reading) -> bool:
        return self.processes.from_main(lambda: self._write_here(reading))

    def _write_here(self, reading: Reading) -> bool:
        row = reading.row()
        self.run.append(HOLDOUT, row)
        rows = self.run.lines(HOLDOUT)
        best = best_step(rows) == row["step"]
        facts = {"step": reading.step, "best_step": best_step(rows), "pictures": reading.ranking()}
        self.run.json("holdout.json", facts)
        self.listener(HoldoutMeasured(row["step"], row["loss"], row["relative"], best))
        return best


@dataclass
class PreviewWatch:
    """Draws the previews every `every` steps; the last ones are drawn when the run is finished."""

    family: ModelFamily
    state: State
    run: Run
    options: PreviewOptions
    base_pictures: Sequence[Image.Image]
    every: int
    steps: int
    listener: Listener

    def due(self, step: int) -> bool:
        """Whether it is time after this step."""
        return step % self.every == 0 and step != self.steps

    def after_step(self, step: int) -> None:
        """Draw a sheet if it is time."""
        if not self.due(step):
            return
        with self.state.shown():
            tuned = render(self.family, self.options)
        sheet = grid(self.options.prompts, self.base_pictures, tuned)
        path = self.run.file(f"previews/step_{step:06}.png", as_png(sheet))
        self.listener(PreviewsDrawn(step, path, self.options.prompts, tuple(tuned)))


@dataclass
class Watch:
    """Both, as far as a run has them."""

    holdout: HoldoutWatch | None
    previews: PreviewWatch | None

    def begin(self) -> None:
        """Before the first step."""
        if self.holdout is not None:
            self.holdout.begin()

    def due(self, step: int) -> bool:
        """Whether one of them looks at the result of this step."""
        return any(one is not None and one.due(step) for one in (self.holdout, self.previews))

    def after_step(self, step: int) -> bool:
        """After a step; whether it is the best so far and a checkpoint of it is wanted."""
        if self.previews is not None:
            self.previews.after_step(step)
        return self.holdout is not None and self.holdout.after_step(step)

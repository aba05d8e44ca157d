"""What is looked at while a run trains: the loss on validation images, and previews."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image

from lora_studio.evaluate.previews import PreviewOptions, as_png, grid, render
from lora_studio.evaluate.validation import Validation, ValidationResult, best_step
from lora_studio.families.base import ModelFamily
from lora_studio.processes import ALONE, Processes
from lora_studio.runs.folder import VALIDATION, Run
from lora_studio.training.events import Listener, PreviewsDrawn, ValidationMeasured
from lora_studio.training.loop.state import State


@dataclass
class ValidationWatch:
    """Measures before the first step, then every `every` steps and after the last."""

    validation: Validation
    state: State
    run: Run
    every: int
    steps: int
    listener: Listener
    processes: Processes = ALONE

    def begin(self) -> None:
        """Measure the base, and the state of step 0 unless a run that is resumed has its line already."""
        with self.state.adapters.disabled():
            self.validation.measure_base()
        if self.processes.from_main(lambda: not self.run.lines(VALIDATION)):
            with self.state.shown():
                reading = self.validation.measure(0)
            self._write(reading)

    def due(self, step: int) -> bool:
        """Whether it is time after this step."""
        return step % self.every == 0 or step == self.steps

    def after_step(self, step: int) -> bool:
        """Measure if it is time; whether this is the best so far."""
        if not self.due(step):
            return False
        with self.state.shown():
            reading = self.validation.measure(step)
        return self._write(reading)

    def _write(self, reading: ValidationResult) -> bool:
        return self.processes.from_main(lambda: self._write_here(reading))

    def _write_here(self, reading: ValidationResult) -> bool:
        row = reading.row()
        self.run.append(VALIDATION, row)
        rows = self.run.lines(VALIDATION)
        best = best_step(rows) == row["step"]
        facts = {"step": reading.step, "best_step": best_step(rows), "images": reading.ranking()}
        self.run.json("validation.json", facts)
        self.listener(ValidationMeasured(row["step"], row["loss"], row["relative"], best))
        return best


@dataclass
class PreviewWatch:
    """Draws the previews every `every` steps; the last ones are drawn when the run is finished."""

    family: ModelFamily
    state: State
    run: Run
    options: PreviewOptions
    base_images: Sequence[Image.Image]
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
        sheet = grid(self.options.prompts, self.base_images, tuned)
        path = self.run.file(f"previews/step_{step:06}.png", as_png(sheet))
        self.listener(PreviewsDrawn(step, path, self.options.prompts, tuple(tuned)))


@dataclass
class Watch:
    """Both, as far as a run has them."""

    validation: ValidationWatch | None
    previews: PreviewWatch | None

    def begin(self) -> None:
        """Before the first step."""
        if self.validation is not None:
            self.validation.begin()

    def due(self, step: int) -> bool:
        """Whether one of them looks at the result of this step."""
        return any(one is not None and one.due(step) for one in (self.validation, self.previews))

    def after_step(self, step: int) -> bool:
        """After a step; whether it is the best so far and a checkpoint of it is wanted."""
        if self.previews is not None:
            self.previews.after_step(step)
        return self.validation is not None and self.validation.after_step(step)


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Within it the first Ctrl-C or SIGTERM sets the event; a second one does what it usually does.

    SIGTERM is what batch systems send before they take a machine away, and launchers to all processes when
    one of them has ended.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # signals belong to the main thread; elsewhere the caller stops the run
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_interrupt(number: int, frame: object) -> None:
        asked.set()
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, on_interrupt)
    try:
        yield asked
    finally:
        restore()

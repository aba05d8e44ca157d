"""What is looked at while a run trains: the loss on validation images, and previews."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from PIL import Image

from lora_studio.errors import preview_names
from lora_studio.evaluate.preview_sheet import png_with_prompts, sheet_of
from lora_studio.evaluate.previews import as_png, load_images, render
from lora_studio.evaluate.validation import TIMESTEPS, Validation, ValidationResult, best_step
from lora_studio.families.base import ModelFamily
from lora_studio.metadata.sidecars import tuned_image
from lora_studio.processes import ALONE, Processes
from lora_studio.recipe.preview_prompts import asked_prompts
from lora_studio.recipe.training import SamplesConfig
from lora_studio.runs import VALIDATION, Run
from lora_studio.training.events import Listener, Note, PreviewsDrawn, ValidationMeasured
from lora_studio.training.loop.state import State
from lora_studio.training.machine import out_of_memory, unless_out_of_memory, within_memory

T = TypeVar("T")
LESS_FOR_PREVIEWS = (
    'a smaller data.resolution or base.quantize = "bnb_nf4" takes less, and samples.prompts = [] draws none'
)


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

    def begin(self, step: int = 0) -> None:
        """Measure the base, and the state of step 0, or of the `step` that a resumed run goes on from.

        Unless its line is there already; of steps before that nothing can be measured again.
        """
        with self.state.adapters.disabled():
            measure_within_memory(self.validation, self.validation.measure_base)
        found = self.processes.from_main(lambda: [row["step"] for row in self.run.measurements()])
        if step not in found and self.due(step):
            self._measure(step)

    def due(self, step: int) -> bool:
        return step % self.every == 0 or step == self.steps

    def after_step(self, step: int) -> bool:
        """Measure if it is time; whether this is the best so far."""
        return self.due(step) and self._measure(step)

    def _measure(self, step: int) -> bool:
        with self.state.shown():
            result = measure_within_memory(self.validation, lambda: self.validation.measure(step))
        return self.processes.from_main(lambda: self._write(result))

    def _write(self, result: ValidationResult) -> bool:
        row = result.row()
        self.run.append(VALIDATION, row)
        rows = self.run.measurements()
        best = best_step(rows) == row["step"]
        facts = {"step": result.step, "best_step": best_step(rows), "images": result.ranking()}
        self.run.json("validation.json", facts)
        self.listener(ValidationMeasured(row["step"], row["loss"], row["relative"], best))
        return best


def measure_within_memory(validation: Validation, measure: Callable[[], T]) -> T:
    """What `measure` returns, with half as many rows at once each time memory runs out.

    It is never left out, since it decides which checkpoint is kept. Raises OutOfMemory if one row does not
    fit, which is less than a step needs.
    """

    def use_fewer_rows() -> None:
        rows, family = min(validation.rows_at_once, TIMESTEPS), validation.family
        if rows == 1 or family.is_spread:  # of several processes with one base the others would wait
            raise out_of_memory(f"while validation images were measured on {family.device}")
        validation.rows_at_once = (rows + 1) // 2

    return within_memory(measure, use_fewer_rows)


def draw_within_memory(family: ModelFamily, draw: Callable[[], T]) -> T | None:
    """What `draw` returns; None if memory runs out, since a run can do without previews."""
    if family.is_spread:  # the other processes would wait for this one
        return draw()
    return unless_out_of_memory(draw)


@dataclass
class PreviewWatch:
    """Draws the previews: the base's at the start, then every `config.every` steps and at the end."""

    family: ModelFamily
    state: State
    run: Run
    config: SamplesConfig
    side: int  # pixels
    steps: int
    listener: Listener
    processes: Processes = ALONE
    base_images: Sequence[Image.Image] = ()
    _asked: tuple[SamplesConfig, Sequence[Image.Image]] | None = None  # other prompts, with the base's images

    def begin(self, step: int = 0) -> None:
        """The base's images, drawn once a run, and the sheet of step 0.

        `step`: of the checkpoint that a resumed run goes on from; its sheet, which is drawn after it was
        saved, may be missing.
        """
        images = self.processes.from_main(self._drawn_before)
        if images is None:
            self.listener(Note("drawing the base's previews"))
            with self.state.adapters.disabled():
                images = self._draw(self.config)
            for number, image in enumerate(images):
                self.run.file(f"previews/base_{number:02}.png", as_png(image))
            self._show(0, self.config, images, images)
        self.base_images = images
        if step and self.due(step) and not self.processes.from_main((self.run.folder / _sheet(step)).exists):
            self.after_save(step)

    def _drawn_before(self) -> list[Image.Image] | None:
        """The base's, of an earlier start of the same run; None if they are not all there and whole."""
        names = [f"previews/base_{number:02}.png" for number in range(len(self.config.prompts))]
        found = load_images([self.run.folder / name for name in names], self.side)
        if lost := [name for name, image in zip(names, found, strict=True) if image is None]:
            if any(os.path.lexists(self.run.folder / name) for name in names):
                self.listener(Note(f"{preview_names(lost)} of {self.run.folder} cannot be read or is gone"))
            return None
        return [image for image in found if image is not None]

    def due(self, step: int) -> bool:
        every = self.config.every if self.base_images else 0
        return bool(every) and step % every == 0 and step != self.steps

    def after_save(self, step: int) -> None:
        if self.due(step):
            config, base = self._asked_for()
            with self.state.shown():
                self._show(step, config, base, self._draw(config))

    def _asked_for(self) -> tuple[SamplesConfig, Sequence[Image.Image]]:
        """What is drawn by now, with the base's images: prompts can be changed while a run is at work."""
        prompts = self.processes.from_main(lambda: asked_prompts(self.run.folder))
        if prompts is None or prompts == self.config.prompts:
            return self.config, self.base_images
        if self._asked is None or self._asked[0].prompts != prompts:
            config = self.config.model_copy(update={"prompts": prompts})
            with self.state.adapters.disabled():
                self._asked = config, self._draw(config)
        return self._asked

    def finish(self) -> None:
        """The sheet of what the run ends with, and its images as files; to be called while it is `shown`.

        They are of the recipe's prompts, which stand beside them on the model's card.
        """
        if self.base_images:
            tuned = self._draw(self.config)
            for number, image in enumerate(tuned):
                self.run.file(tuned_image(number), as_png(image))
            self._show(self.state.counters.step, self.config, self.base_images, tuned)

    def _draw(self, config: SamplesConfig) -> list[Image.Image]:
        """An image a prompt; none, and a note, if there is not enough memory for them: the run goes on."""
        images = draw_within_memory(self.family, lambda: render(self.family, config, side=self.side))
        if images is None:
            what = f"{self.family.device} has not enough memory for one beside what is trained"
            self.listener(Note(f"warning: no previews are drawn: {what}; {LESS_FOR_PREVIEWS}"))
        return images or []

    def _show(
        self, step: int, config: SamplesConfig, base: Sequence[Image.Image], tuned: Sequence[Image.Image]
    ) -> None:
        if base and tuned:
            sheet, prompts = sheet_of(config.prompts, {"base": base, "tuned": tuned}), config.prompts
            usual = prompts == self.config.prompts
            path = self.run.file(_sheet(step), as_png(sheet) if usual else png_with_prompts(sheet, prompts))
            self.listener(PreviewsDrawn(step, path, prompts, tuple(tuned)))


def _sheet(step: int) -> str:
    return f"previews/step_{step:06}.png"


@dataclass
class Watch:
    validation: ValidationWatch | None  # none without validation images
    previews: PreviewWatch
    choice: CheckpointWatch | None = None  # none without a choice of checkpoints
    exported: int | None = None  # a step that the file is made of

    def due(self, step: int) -> bool:
        watching = self.previews, self.validation, self.choice
        return step == self.exported or any(one is not None and one.due(step) for one in watching)

    def after_step(self, step: int) -> bool:
        """Before a step is saved; whether a checkpoint of it is wanted, as of the best so far."""
        best = self.validation is not None and self.validation.after_step(step)
        measured = self.choice is not None and self.choice.after_step(step)
        return best or measured or step == self.exported

    def is_enough(self) -> bool:
        """Whether more steps are in vain, as far as was measured."""
        return self.choice is not None and self.choice.is_enough()


class CheckpointWatch(Protocol):
    """Measures checkpoints while a run trains: see `training.evaluating.choice_watch`."""

    def begin(self, step: int = 0) -> None: ...

    def due(self, step: int) -> bool: ...

    def after_step(self, step: int) -> bool:
        """Whether it was measured, and its checkpoint is to be kept."""

    def is_enough(self) -> bool: ...

"""What a run tells whoever listens: the command line, a notebook, a web page."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_studio.text import PlanSection, plural

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class TrainingPlan:
    """What will be trained, told before the first step."""

    name: str
    sections: tuple[PlanSection, ...]

    @property
    def rows(self) -> list[tuple[str, str]]:
        return [row for section in self.sections for row in section.rows]

    @property
    def data(self) -> dict[str, Any]:
        return {"name": self.name} | {key: one.data[key] for one in self.sections for key in one.data}


@dataclass(frozen=True)
class Progress:
    """Work before or after the steps: "latents" 12 of 28."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class StepDone:
    step: int
    steps: int
    loss: float
    learning_rate: float
    seconds: float
    grad_norm: float  # before it was clipped


@dataclass(frozen=True)
class StepSkipped:
    """An optimizer step whose loss or gradient was not finite; weights and optimizer are as before it."""

    step: int
    steps: int
    loss: float
    grad_norm: float
    in_a_row: int
    most: int  # so many in a row end the run
    scale: float = 1.0  # of float16's loss, if that is to blame: it is halved, and the step does not count

    @property
    def text(self) -> str:
        """Why it was skipped, and after how many the run ends; float16's scaling alone is no warning."""
        if self.scale > 1:
            why = f"its gradients overflow in float16 with the loss times {self.scale:g}, which is halved"
            return f"step {self.step} skipped: {why}"
        why = f"its loss is {self.loss:g} and its gradient norm {self.grad_norm:g}"
        return f"warning: step {self.step} skipped: {why}; {self.in_a_row} in a row, {self.most} end the run"


@dataclass(frozen=True)
class MemoryRanOut:
    """A micro-batch did not fit into memory: it is trained again, in more passes of fewer rows."""

    passes: int
    rows: int  # in a pass, at most

    @property
    def text(self) -> str:
        passes = f"{self.passes} passes of up to {plural(self.rows)} from now on"
        same = "what is learned stays the same, it takes a little longer"
        return f"warning: the memory ran out: each batch is learned in {passes}; {same}"


@dataclass(frozen=True)
class ValidationMeasured:
    step: int  # 0: before the first
    loss: float
    relative: float  # of the base's
    best: bool  # so far

    @property
    def text(self) -> str:
        if self.step == 0:
            return f"validation images before the first step: loss {self.loss:.4f}"
        share = f"{self.relative:.1%} of the base's{', the best so far' if self.best else ''}"
        return f"validation images at step {self.step}: loss {self.loss:.4f}, {share}"


@dataclass(frozen=True)
class PreviewsDrawn:
    """An image a prompt from the model as it is at this step; of step 0, the base's."""

    step: int
    path: Path  # of the sheet
    prompts: tuple[str, ...]
    images: tuple[Image, ...]

    @property
    def text(self) -> str:
        return f"previews of step {self.step}: {self.path}"


@dataclass(frozen=True)
class Note:
    """Something worth a line: a checkpoint, a file written, a warning."""

    text: str


@dataclass(frozen=True)
class StopAsked:
    """The first Ctrl-C or the like; told from the signal's handler, so in the middle of anything."""

    text: str = "stopping after this step, with a checkpoint; once more: at once, without one"


_Told = (
    MemoryRanOut | Note | PreviewsDrawn | StepSkipped | StopAsked | ValidationMeasured
)  # each with a `text`
Event = TrainingPlan | Progress | StepDone | _Told
Listener = Callable[[Event], None]


class StopTraining(Exception):
    """A listener raises it to stop the run: after the step under way, with a checkpoint, as Ctrl-C does."""


def ignore_events(event: Event) -> None:
    """A listener that does nothing."""


def outliving_terminal(listener: Listener) -> Listener:
    """The listener, until the terminal that it prints to is gone: a run goes on, or is saved, without it."""
    gone = False

    def hear(event: Event) -> None:
        nonlocal gone
        if not gone:
            try:
                listener(event)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                gone = True

    return hear


def may_stop(listener: Listener, asked: threading.Event) -> Listener:
    """The listener, whose StopTraining sets `asked` and goes no further: what follows is told it, too."""

    def hear(event: Event) -> None:
        try:
            listener(event)
        except StopTraining:
            asked.set()

    return hear


def progress(listener: Listener, what: str) -> Callable[[int, int], None]:
    """Tells the listener how many of how many are done."""
    return lambda done, total: listener(Progress(what, done, total))

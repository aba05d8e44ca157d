"""Curves and previews for TensorBoard, W&B, trackio, or a tracker registered with accelerate."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from lora_studio.recipe import Recipe
from lora_studio.registry import unknown
from lora_studio.runs import Run
from lora_studio.training.events import Event, Listener, Note, PreviewsDrawn, StepDone, ValidationMeasured

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

OFFERED = ("tensorboard", "wandb", "trackio")  # each is also what pip calls it
FOLDER = "tracking"  # in the run folder
IDENTITY = "tracking.json"  # the run's id where a tracker wants one, so that a resume goes on with its curve
SECTIONS = {"adapter", "objective", "training"}  # numbers and names of tables: no paths, words or people
# Without these it sends the command line, the user's and the machine's name, and what is printed.
QUIET_WANDB: dict[str, object] = {"disable_git": True, "disable_code": True, "save_code": False}
QUIET_WANDB |= {"x_disable_meta": True, "console": "off"}


def tracker_faults(names: Sequence[str]) -> list[str]:
    """A sentence for each name in tracking.to that is unknown or whose package is not installed."""
    if not names:
        return []
    from accelerate import tracking
    from accelerate.utils import LoggerType

    own = [name for name in tracking.LOGGER_TYPE_TO_CLASS if name not in LoggerType.list()]
    known, installed = [*OFFERED, *own], {*map(str, tracking.get_available_trackers()), *own}
    faults = []
    for name in names:
        advice = f"run: pip install {name}, or leave it out of tracking.to."
        if name not in known:
            faults.append(unknown("tracker", name, known))
        elif name not in installed:
            faults.append(f"tracking.to has {name!r}, which is not installed; {advice}")
    return faults


class Tracking:
    """A listener that passes everything on and, once it is started, tells the trackers.

    A tracker that fails is left out from then on and named in a note; the run goes on.
    """

    def __init__(self, recipe: Recipe, run: Run, listener: Listener) -> None:
        self.recipe, self.run, self.listener = recipe, run, listener
        self._trackers: dict[str, GeneralTracker] = {}

    def __call__(self, event: Event) -> None:
        self.listener(event)
        if isinstance(event, StepDone):
            facts = {"loss": event.loss, "learning_rate": event.learning_rate, "grad_norm": event.grad_norm}
            self._log({f"train/{name}": value for name, value in facts.items()}, event.step)
        elif isinstance(event, ValidationMeasured):
            self._log({"validation/loss": event.loss, "validation/relative": event.relative}, event.step)
        elif isinstance(event, PreviewsDrawn):
            titles = event.prompts if self.recipe.tracking.words else range(1, len(event.images) + 1)
            images = {f"previews/{title}": one for title, one in zip(titles, event.images, strict=True)}
            self._each(lambda name, tracker: _log_images(name, tracker, images, event.step))

    def start(self, step: int) -> None:
        """Begin with what follows this step, which is 0 unless a run is resumed."""
        for name in dict.fromkeys(self.recipe.tracking.to):
            self._guarded(name, partial(self._open, name, step))

    def finish(self) -> None:
        self._each(lambda _, tracker: tracker.finish())
        self._trackers.clear()

    def _open(self, name: str, step: int) -> None:
        from accelerate.state import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # without it some of accelerate's trackers fail at their first line of log
        kind, folder = LOGGER_TYPE_TO_CLASS[name], self.run.folder / FOLDER
        with self.run.writing():
            folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TRACKIO_DIR", str(folder / "trackio"))  # trackio reads it when it is imported
        where = [str(folder)] if kind.requires_logging_directory else []
        tracker = kind(self.recipe.tracking.project, *where, **self._options(name, step))
        if hasattr(tracker, "start"):
            tracker.start()
        if name != "tensorboard":  # which would make a folder of its own for them at every start
            tracker.store_init_configuration(self._settings())
        self._trackers[name] = tracker

    def _options(self, name: str, step: int) -> dict[str, object]:
        """What the tracker is made with, so that it continues its own curve."""
        resumable = {"name": self.recipe.tracking.run_name or self.recipe.name, "resume": "allow"}
        if name == "tensorboard":
            return {"purge_step": step + 1 if step else 0}  # what comes after it is written again
        if name == "wandb":
            folder = str(self.run.folder / FOLDER)
            return resumable | {"id": self._identity(), "dir": folder, "settings": QUIET_WANDB}
        return dict(resumable) if name == "trackio" else {}

    def _identity(self) -> str:
        path = self.run.folder / IDENTITY
        if not path.is_file():
            self.run.text(IDENTITY, uuid.uuid4().hex)
        return path.read_text("utf-8").strip()

    def _settings(self) -> dict[str, object]:
        values = self.recipe.model_dump(mode="json", include=SECTIONS)
        flat = {f"{section}.{name}": value for section in values for name, value in values[section].items()}
        return flat | ({"data.trigger": self.recipe.data.trigger} if self.recipe.tracking.words else {})

    def _log(self, values: dict[str, float], step: int) -> None:
        self._each(lambda _, tracker: tracker.log(values, step=step))

    def _each(self, action: Callable[[str, GeneralTracker], object]) -> None:
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, partial(action, name, tracker))

    def _guarded(self, name: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # whatever a tracker or the network may come up with
            self._trackers.pop(name, None)
            why = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            text = f"warning: the tracker {name} failed and is off for the rest of this run ({why})"
            self.listener(Note(text))


def _log_images(name: str, tracker: GeneralTracker, images: dict[str, Image.Image], step: int) -> None:
    if name == "tensorboard":
        arrays = {title: np.asarray(one.convert("RGB"))[None] for title, one in images.items()}
        tracker.log_images(arrays, step=step, dataformats="NHWC")
    elif name == "trackio":
        import trackio

        tracker.log({title: trackio.Image(one) for title, one in images.items()}, step=step)
    elif hasattr(tracker, "log_images"):
        tracker.log_images({title: [one] for title, one in images.items()}, step=step)

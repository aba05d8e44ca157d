"""Trackers: TensorBoard for real, others through a stand-in registered with accelerate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from accelerate import tracking as of_accelerate
from accelerate.tracking import GeneralTracker, register_tracker_class
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lora_studio.errors import RecipeError
from lora_studio.recipe.load import load_recipe
from lora_studio.runs import Run
from lora_studio.training import tracking
from lora_studio.training.events import Event, Note, StepDone, ignore_events
from lora_studio.training.finish import Finished
from lora_studio.training.session import train

VALIDATION = ("validation.count=1", "validation.every=2")


class Notebook(GeneralTracker):
    """Keeps what it is told; fails at a step if it is told to."""

    name = "notebook"
    requires_logging_directory = True
    told: ClassVar[list[tuple[str, object]]] = []
    fails_at: ClassVar[int | None] = None

    def __init__(self, project: str, folder: str, **options: object) -> None:
        super().__init__()
        self.told.append(("made", (project, folder, options)))

    @property
    def tracker(self) -> object:
        return self

    def store_init_configuration(self, values: dict[str, object]) -> None:
        self.told.append(("settings", values))

    def log(self, values: dict[str, float], step: int | None = None, **more: object) -> None:
        if step == self.fails_at:
            raise ConnectionError("the server has gone\nwith details")
        self.told.append(("log", (step, values)))

    def log_images(self, values: dict[str, object], step: int | None = None, **more: object) -> None:
        self.told.append(("images", (step, list(values))))

    def finish(self) -> None:
        self.told.append(("finished", None))


@pytest.fixture
def notebook() -> Iterator[type[Notebook]]:
    register_tracker_class(Notebook)
    Notebook.told.clear()
    Notebook.fails_at = None
    yield Notebook
    del of_accelerate.LOGGER_TYPE_TO_CLASS["notebook"]


def events_of(folder: Path) -> EventAccumulator:
    """What TensorBoard shows of a run folder."""
    found = EventAccumulator(str(folder / "tracking" / "lora-studio"))
    found.Reload()
    return found


def steps_of(shown: EventAccumulator, tag: str) -> list[int]:
    return [one.step for one in shown.Scalars(tag)]


def test_tensorboard_shows_the_metrics_and_no_words(tmp_path: Path, recipe_file: Path) -> None:
    folder = tmp_path / "run"
    recipe = load_recipe(recipe_file, changes=(*VALIDATION, 'tracking.to=["tensorboard"]'))
    assert isinstance(train(recipe, folder), Finished)
    shown, rows = events_of(folder), Run(folder).metrics()
    for name in ("loss", "learning_rate", "grad_norm"):
        scalars = shown.Scalars(f"train/{name}")
        assert [one.step for one in scalars] == [1, 2, 3, 4]
        assert [one.value for one in scalars] == pytest.approx([row[name] for row in rows])
    measured = Run(folder).lines("validation.jsonl")
    assert [one.value for one in shown.Scalars("validation/loss")] == pytest.approx(
        [row["loss"] for row in measured]
    )
    assert steps_of(shown, "validation/relative") == [0, 2, 4]
    assert set(shown.Tags()["images"]) == {"previews/1", "previews/2"}
    (base, tuned) = shown.Images("previews/1")
    assert (base.step, tuned.step, tuned.width, tuned.height) == (0, 4, 64, 64)
    private = [str(tmp_path), "a red ball", "zwx", str(recipe.data.images)]
    written = b"".join(path.read_bytes() for path in (folder / "tracking").rglob("*") if path.is_file())
    assert not [words for words in private if words.encode() in written]


def test_a_resume_goes_on_with_the_same_curve(tmp_path: Path, recipe_file: Path) -> None:
    """Steps after the checkpoint are done again: what was sent of them before is no longer shown."""
    recipe = load_recipe(recipe_file, changes=('tracking.to=["tensorboard"]',))
    for first, last in ((0, 5), (3, 8)):
        listener = tracking.Tracking(recipe, Run(tmp_path), ignore_events)
        listener.start(first)
        for step in range(first + 1, last + 1):
            listener(StepDone(step, 8, loss=first + step, learning_rate=1.0, seconds=0.0, grad_norm=1.0))
        listener.finish()
    scalars = events_of(tmp_path).Scalars("train/loss")
    assert [(one.step, one.value) for one in scalars] == [
        *((1, 1), (2, 2), (3, 3)),
        *((4, 7), (5, 8), (6, 9), (7, 10), (8, 11)),
    ]


def told(kind: str) -> list[object]:
    return [what for name, what in Notebook.told if name == kind]


def test_a_registered_tracker_gets_everything_but_words_unless_tracking_words_is_set(
    tmp_path: Path, recipe_file: Path, notebook: type[Notebook]
) -> None:
    recipe = load_recipe(recipe_file, changes=('tracking.to=["notebook"]', "tracking.project=foxes"))
    listener = tracking.Tracking(recipe, Run(tmp_path), ignore_events)
    listener.start(0)
    assert told("made") == [("foxes", str(tmp_path / "tracking"), {})]
    (settings,) = told("settings")
    assert isinstance(settings, dict) and settings["adapter.rank"] == 4
    assert "zwx" not in str(settings) and str(recipe.data.images) not in str(settings)
    words = recipe.model_copy(update={"tracking": recipe.tracking.model_copy(update={"words": True})})
    asked = tracking.Tracking(words, Run(tmp_path), ignore_events)
    asked.start(0)
    assert told("settings")[-1]["data.trigger"] == "zwx style"  # type: ignore[index]
    images = (Image.new("RGB", (8, 8)),)
    for each in (listener, asked):
        each(tracking.PreviewsDrawn(3, tmp_path, ("a red ball",), images))
    assert told("images") == [(3, ["previews/1"]), (3, ["previews/a red ball"])]


def test_a_run_has_the_recipes_name_or_the_one_of_tracking_run_name(
    tmp_path: Path, recipe_file: Path, notebook: type[Notebook], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(of_accelerate.LOGGER_TYPE_TO_CLASS, "trackio", notebook)
    for changes in ((), ("tracking.run_name=fox",)):
        recipe = load_recipe(recipe_file, changes=('tracking.to=["trackio"]', *changes))
        tracking.Tracking(recipe, Run(tmp_path), ignore_events).start(0)
    names = [options["name"] for _, _, options in told("made")]  # type: ignore[misc, attr-defined]
    assert names == ["tiny", "fox"]


def test_a_tracker_that_fails_is_named_once_and_the_run_goes_on(
    tmp_path: Path, recipe_file: Path, notebook: type[Notebook]
) -> None:
    notebook.fails_at = 2
    heard: list[Event] = []
    recipe = load_recipe(recipe_file, changes=('tracking.to=["notebook"]', "samples.prompts=[]"))
    result = train(recipe, tmp_path / "run", on_event=heard.append)
    assert isinstance(result, Finished) and result.summary["steps"] == 4
    said = [event.text for event in heard if isinstance(event, Note) and "notebook" in event.text]
    assert said == [
        "warning: the tracker notebook failed and is off for the rest of this run "
        "(ConnectionError: the server has gone)"
    ]
    assert [step for step, _ in told("log")] == [1]  # type: ignore[misc]


def test_an_unknown_tracker_and_one_that_is_not_installed_are_refused_before_anything_else(
    tmp_path: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(recipe_file, changes=('tracking.to=["tensorbord"]',))
    with pytest.raises(RecipeError, match="unknown tracker 'tensorbord'; did you mean 'tensorboard'"):
        train(recipe, tmp_path / "run")
    monkeypatch.setattr(of_accelerate, "_available_trackers", [])
    recipe = load_recipe(recipe_file, changes=('tracking.to=["wandb"]',))
    with pytest.raises(RecipeError, match="'wandb', which is not installed; run: pip install wandb"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()

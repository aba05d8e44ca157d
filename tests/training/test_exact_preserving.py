"""LoKr with schedule-free AdamW, regularization images, preservation and masks: resumed, the same bytes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from noise import grey_noise
from PIL import Image
from tiny import image_folder, recipe_text

from lora_studio.errors import Interrupted
from lora_studio.recipe.load import load_recipe
from lora_studio.runs import Run
from lora_studio.training.events import Event, StepDone
from lora_studio.training.finish import Finished
from lora_studio.training.session import train

CHANGES = (
    *("adapter.kind=lokr", "training.optimizer=schedule_free", "training.lr_schedule=constant"),
    *(
        "data.regularization_images.images=class",
        "data.regularization_images.weight=0.5",
        "data.class_words=thing",
    ),
    *("objective.preservation=0.3", "objective.masked_preservation=0.5", "data.masks=masks"),
    *("training.steps=6", "training.gradient_accumulation=2", "data.resolution=32"),
)


def interrupting(at: int):  # type: ignore[no-untyped-def]
    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == at:
            os.kill(os.getpid(), signal.SIGINT)

    return listen


def left_behind(folder: Path) -> dict[str, object]:
    """All that does not depend on the clock."""
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in Run(folder).metrics()]
    names = ["tiny.safetensors", *(f"checkpoints/step_000006/{name}" for name in ("adapters.safetensors",))]
    return {name: (folder / name).read_bytes() for name in names} | {"metrics": rows}


@pytest.mark.filterwarnings("ignore")  # what the optimizer's import says
def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path: Path, tiny_base: Path) -> None:
    pytest.importorskip("schedulefree")
    images = image_folder(tmp_path / "images", count=4)
    for folder in ("class", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(3):
        grey_noise((64, 64), 60 + number).convert("RGB").save(tmp_path / "class" / f"{number}.png")
        (tmp_path / "class" / f"{number}.txt").write_text("plain", "utf-8")
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (16, 16, 48, 48))
    mask.save(tmp_path / "masks" / "00.png")
    (tmp_path / "tiny.toml").write_text(recipe_text(images, str(tiny_base)), "utf-8")
    recipe = load_recipe(tmp_path / "tiny.toml", changes=CHANGES)
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert isinstance(train(recipe, straight), Finished)
    with pytest.raises(Interrupted) as found:
        train(recipe, stopped, on_event=interrupting(3))
    assert found.value.step == 3
    assert isinstance(train(recipe, stopped, resume=True), Finished)
    assert left_behind(stopped) == left_behind(straight)

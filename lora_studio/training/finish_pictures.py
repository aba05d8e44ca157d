"""The previews before the first step and after the last one, as files and for a listener."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from lora_studio.export.sidecars import tuned_picture
from lora_studio.training.build import Session
from lora_studio.training.events import Listener, Note, PreviewsDrawn
from lora_studio.training.preview import as_png, grid, load_pictures, render_base


def show_base(session: Session, listener: Listener) -> list[Image.Image]:
    """The base's pictures for the previews, drawn once a run, and the sheet of step 0."""
    prompts, folder = session.preview.prompts, session.run.folder / "previews"
    if not prompts:
        return []
    pictures = session.processes.from_main(lambda: load_pictures(folder, len(prompts)))
    if pictures is None:
        listener(Note("drawing the base's previews"))
        pictures = render_base(session.family, session.adapters, session.preview)
        for number, picture in enumerate(pictures):
            session.run.file(f"previews/base_{number:02}.png", as_png(picture))
        sheet = as_png(grid(prompts, pictures, pictures))
        path = session.run.file("previews/step_000000.png", sheet)
        listener(PreviewsDrawn(0, path, prompts, tuple(pictures)))
    return pictures


def show_tuned(
    session: Session, base_pictures: list[Image.Image], tuned: list[Image.Image]
) -> tuple[int, Path, tuple[str, ...]]:
    """The last step, the sheet of its pictures beside the base's, and their prompts."""
    prompts, step = session.preview.prompts, session.recipe.training.steps
    sheet = grid(prompts, base_pictures, tuned)
    for number, picture in enumerate(tuned):
        session.run.file(tuned_picture(number), as_png(picture))
    return step, session.run.file(f"previews/step_{step:06}.png", as_png(sheet)), prompts

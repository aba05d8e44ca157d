"""The previews before the first step and after the last one, as files and for a listener."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from lora_studio.evaluate.previews import as_png, grid, load_images, render_base
from lora_studio.metadata.sidecars import tuned_image
from lora_studio.training.events import Listener, Note, PreviewsDrawn
from lora_studio.training.prepare import Session


def show_base(session: Session, listener: Listener) -> list[Image.Image]:
    """The base's images for the previews, drawn once a run, and the sheet of step 0."""
    prompts, folder = session.preview.prompts, session.run.folder / "previews"
    if not prompts:
        return []
    images = session.processes.from_main(lambda: load_images(folder, len(prompts)))
    if images is None:
        listener(Note("drawing the base's previews"))
        images = render_base(session.family, session.adapters, session.preview)
        for number, image in enumerate(images):
            session.run.file(f"previews/base_{number:02}.png", as_png(image))
        sheet = as_png(grid(prompts, images, images))
        path = session.run.file("previews/step_000000.png", sheet)
        listener(PreviewsDrawn(0, path, prompts, tuple(images)))
    return images


def show_tuned(
    session: Session, base_images: list[Image.Image], tuned: list[Image.Image]
) -> tuple[int, Path, tuple[str, ...]]:
    """The last step, the sheet of its images beside the base's, and their prompts."""
    prompts, step = session.preview.prompts, session.recipe.training.steps
    sheet = grid(prompts, base_images, tuned)
    for number, image in enumerate(tuned):
        session.run.file(tuned_image(number), as_png(image))
    return step, session.run.file(f"previews/step_{step:06}.png", as_png(sheet)), prompts

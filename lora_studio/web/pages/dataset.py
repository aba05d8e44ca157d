"""The page of a set of images: a grid of thousands, filters, and one image large with its tools."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from nicegui import background_tasks, ui
from nicegui.events import GenericEventArguments

from lora_studio.errors import StudioError
from lora_studio.text import plural, shown
from lora_studio.web.dataset import DatasetImage
from lora_studio.web.dataset.captions import save_caption
from lora_studio.web.dataset.opened import OpenDataset, opened
from lora_studio.web.dataset.rows import BLOCK, ImageFilter, row_of
from lora_studio.web.dataset.watching import watch
from lora_studio.web.pages.caption_tools import CaptionTools
from lora_studio.web.pages.frame import (
    fault_box,
    frame,
    heading,
    say_fault,
    shown_lines,
    text,
    told,
    told_later,
)
from lora_studio.web.pages.image_view import ImageView
from lora_studio.web.pages.parts import Bar
from lora_studio.web.pages.picker import PathField
from lora_studio.web.pages.styles import add_style
from lora_studio.web.studio import studio

_WHICH = {
    "all": "all images",
    "used": "used",
    "left_out": "not used",
    "uncaptioned": "without a caption",
    "masked": "with a mask",
}
_LOOKING = "lora_studio.web.dataset.looking"


class ImageGrid(ui.element, component="image_grid.js"):
    """Tells "open" and "caption" of an image by its key; what lies below the first block it asks for."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._props |= {"address": address, "block": BLOCK, "version": 0, "count": 0, "rows": [], "query": ""}

    def show(self, images: list[DatasetImage], chosen: ImageFilter) -> None:
        """Those that the filter chooses, as they are now."""
        self._props["version"] += 1
        self._props |= {"count": len(images), "query": chosen.query, "rows": [*map(row_of, images[:BLOCK])]}
        self.update()


@ui.page("/dataset")
def dataset(target: str = "") -> None:
    """`target`: a folder of images or a recipe, below the folders that the page may use."""
    with frame("Dataset", here="/dataset", wide=True):
        add_style("dataset.css")
        DatasetPage(target)


class DatasetPage:
    """What is chosen, and the set once it is open."""

    def __init__(self, target: str) -> None:
        self.there: OpenDataset | None = None
        self._look: asyncio.Task[None] | None = None
        ui.context.client.on_delete(self._cancel)
        with ui.element("div").classes("row spread"):
            heading("Dataset")
        self.field = PathField(
            "A folder of images, or a recipe", endings=(".toml",), on_choose=told_later(self.open)
        )
        self.view = ImageView(self)  # before it is needed: it costs as much as all that opening a set draws
        self.box = ui.element("div").classes("stack dataset")
        if target:
            self.field.value = shown(target, limit=4000)
            ui.timer(0.01, told_later(self.open), once=True)
        else:
            with self.box, ui.element("div").classes("empty"):
                text("Choose a folder of images, or a recipe, to see what is trained on.")

    async def open(self) -> None:
        """List the images at once, and then have the doctor look at them."""
        if self._look is not None:
            self._look.cancel()
        self.view.close()
        self.box.clear()
        try:
            path = self.field.resolved()
            self.there = await asyncio.to_thread(opened.open, path, studio().folders)
        except StudioError as error:
            with self.box:
                fault_box(str(error))
            return
        with self.box:
            self._draw(self.there)
        self._look = background_tasks.create(self._examine(path))

    def _draw(self, there: OpenDataset) -> None:
        with ui.element("div").classes("row spread"):
            with ui.element("div").classes("row"):
                self.count = text("")
                self.progress = Bar("images that the doctor has looked at")
                self.progress.classes("look-bar")
                self.cancel = ui.button("Stop looking", on_click=self._cancel).props("flat dense no-caps")
                self.cancel.classes("quiet small-button")
            with ui.element("div").classes("row"):
                self.undo = ui.button("Undo", icon="undo", on_click=told(self._undo)).props(
                    "flat dense no-caps"
                )
                self.undo.classes("quiet")
                CaptionTools(self)
        self.general = ui.element("div").classes("stack tight")
        self._filters()
        self.grid = ImageGrid(f"/api/datasets/{there.key}/")
        self.grid.on("open", self._opened)
        self.grid.on("caption", self._edited)
        self.show()

    def _filters(self) -> None:
        with ui.element("div").classes("row filters").props("role=search"):
            self.words = ui.input("Find in names and captions", on_change=self.show)
            self.words.props("outlined dense debounce=250 clearable").classes("grow")
            self.which = ui.select(_WHICH, value="all", label="Which", on_change=self.show).props(
                "outlined dense"
            )
            self.kind = ui.select({"": "any finding"}, value="", label="Finding", on_change=self.show)
            self.kind.props("outlined dense").classes("kind")

    def _filter(self) -> ImageFilter:
        return ImageFilter(str(self.words.value or ""), str(self.kind.value or ""), str(self.which.value))

    def chosen(self) -> list[DatasetImage]:
        """As the filters have it."""
        assert self.there is not None
        return self.there.dataset.shown(**asdict(self._filter()))

    def show(self) -> None:
        """The grid, as filters have it."""
        images = self.chosen()
        self.grid.show(images, self._filter())
        self._counted(len(images))

    def _counted(self, seen: int) -> None:
        assert self.there is not None
        images = self.there.dataset.images
        self.count.say(plural(len(images)) if seen == len(images) else f"{seen:,} of {plural(len(images))}")
        self.undo.set_enabled(self.there.last_writer is not None)

    async def _examine(self, path: Path) -> None:
        there = self.there
        assert there is not None

        def tell(done: int, total: int) -> None:
            if self._is_open(there):
                self.progress.share(done / total if total else 1.0)

        try:
            found = await watch(_LOOKING, str(path), on_progress=tell)
        except StudioError as error:
            if self._is_open(there):
                with self.general:
                    fault_box(str(error))
        else:
            if self._is_open(there):
                there.dataset.take_look(found)
                self._looked()
        finally:
            if self._is_open(there):
                self.progress.set_visibility(False)
                self.cancel.set_visibility(False)

    def _is_open(self, there: OpenDataset) -> bool:
        """Whether these images are still shown, and the page is not closed."""
        return there is self.there and not self.box.is_deleted

    def _looked(self) -> None:
        assert self.there is not None
        dataset = self.there.dataset
        with self.box:
            self.kind.set_options(
                {"": "any finding"}
                | {kind: f"{kind.replace('_', ' ')} ({n})" for kind, n in dataset.kinds().items()}
            )
            with self.general:
                for one in dataset.general:
                    with ui.element("div").classes("row finding"):
                        text(one.title, tag="span").classes(f"pill {one.severity}")
                        text(f"{one.detail}. {one.advice}", tag="span").classes("grow small")
            self.show()
            self.view.refresh()

    def _cancel(self) -> None:
        if self._look is not None:
            self._look.cancel()

    def changed(self, name: str) -> None:
        """An image was changed: show it as it is."""
        assert self.there is not None
        image = self.there.dataset.images[name]
        self.grid.run_method("patch", image.key, row_of(image))
        self._counted(len(self.chosen()))

    def _opened(self, event: GenericEventArguments) -> None:
        assert self.there is not None
        with suppress(StudioError):
            self.view.open(self.there.image(str(event.args["key"])))

    def _edited(self, event: GenericEventArguments) -> None:
        assert self.there is not None
        try:
            image = self.there.image(str(event.args["key"]))
            self.save(image, str(event.args["text"]))
        except StudioError as error:
            say_fault(error)
            self.show()

    def save(self, image: DatasetImage, caption: str) -> None:
        """Write its caption. Raises StudioError."""
        assert self.there is not None
        studio().folders.resolve(image.path.parent)
        save_caption(image, caption, self.there.writer)
        self.there.dataset.read_again(image.name)
        self.changed(image.name)
        self.view.refresh()

    async def reopen(self) -> None:
        """Read everything again, as a captioner or another program has changed it."""
        await self.open()

    def _undo(self) -> None:
        assert self.there is not None
        writer = self.there.last_writer
        paths = writer.undo() if writer else []
        ui.notify(shown_lines(f"taken back: {', '.join(one.name for one in paths[:3])}"), type="info")
        background_tasks.create(told_later(self.open)())

"""One image large: caption with its tokens, findings, crop focus, mask, and whether it is left out."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from nicegui import ui
from nicegui.events import GenericEventArguments

from lora_studio.errors import StudioError
from lora_studio.families.original.glance import glance_at_base
from lora_studio.text import shown
from lora_studio.web.dataset import DatasetImage
from lora_studio.web.dataset.captions import TokenCount, clip_tokenizers, count_for, count_tokens
from lora_studio.web.dataset.exclude import set_left_out
from lora_studio.web.dataset.focus import set_focus
from lora_studio.web.dataset.masks import remove_mask
from lora_studio.web.dataset.opened import OpenDataset
from lora_studio.web.forms.words import reads_with_clip
from lora_studio.web.pages.frame import Words, heading, say_fault, text, told
from lora_studio.web.pages.parts import facts
from lora_studio.web.studio import studio


class ImagesPage(Protocol):
    """What shows the set."""

    there: OpenDataset | None

    def chosen(self) -> list[DatasetImage]: ...

    def changed(self, name: str) -> None: ...

    def save(self, image: DatasetImage, caption: str) -> None: ...


class ImagePainter(ui.element, component="image_painter.js"):
    """Tells "focus" and "saved"."""

    def show(self, **props: Any) -> None:
        self._props.update(props)
        self.update()


class ImageView:
    """A dialog over the grid; the arrow buttons go through the images as they are filtered."""

    def __init__(self, page: ImagesPage) -> None:
        self.page, self._counting = page, 0
        self.image: DatasetImage | None = None
        with (
            ui.dialog().props("full-width aria-label='One image'") as self.dialog,
            ui.card().classes("image-view"),
        ):
            with ui.element("div").classes("row spread"):
                self.title = heading("", level=2)
                with ui.element("div").classes("row"):
                    self._arrow("chevron_left", "Previous image", -1)
                    self._arrow("chevron_right", "Next image", 1)
                    close = ui.button(icon="close", on_click=self.dialog.close).props("flat dense")
                    close._props["aria-label"] = "Close"
            with ui.element("div").classes("columns main-aside"):
                self.painter = ImagePainter()
                self.painter.on("focus", self._focus)
                self.painter.on("saved", self._painted)
                with ui.element("div").classes("stack"):
                    self._side()

    def _side(self) -> None:
        self.caption = ui.textarea("Caption", on_change=self._typed).props("outlined autogrow debounce=300")
        self.tokens, self.lost = Words("p", ""), Words("p", "")
        self.tokens.classes("small soft numbers").props("aria-live=polite")
        self.lost.classes("small lost")
        with ui.element("div").classes("row"):
            ui.button("Save caption", on_click=told(self._save)).props("flat no-caps").classes("primary")
            self.leave_out = (
                ui.button("Leave out", on_click=told(self._leave_out)).props("flat no-caps").classes("quiet")
            )
            self.no_mask = (
                ui.button("Remove mask", on_click=told(self._remove_mask))
                .props("flat no-caps")
                .classes("quiet")
            )
        self.facts = ui.element("div")
        self.findings = ui.element("div").classes("stack tight")

    def _arrow(self, icon: str, label: str, step: int) -> None:
        button = ui.button(icon=icon, on_click=lambda: self._go(step)).props("flat dense").classes("quiet")
        button._props["aria-label"] = label

    def open(self, image: DatasetImage) -> None:
        """Show it."""
        self.image = image
        self._draw()
        self.dialog.open()

    def close(self) -> None:
        """It is of no image any more."""
        self.image = None
        self.dialog.close()

    def refresh(self) -> None:
        """Show what has changed of it."""
        there = self.page.there
        if self.image is not None and there is not None and self.image.name in there.dataset.images:
            self.image = there.dataset.images[self.image.name]
            self._draw()

    def _draw(self) -> None:
        image, there = self.image, self.page.there
        assert image is not None and there is not None
        address = f"/api/datasets/{there.key}/{image.key}"
        self.title.say(image.name)
        self.painter.show(
            image=f"{address}/thumbnail.jpg?side=1600",
            mask=f"{address}/mask.png",
            hasMask=bool(image.mask_path),
            crop=image.crop,
            focus=image.focus,
        )
        self.caption.value = image.caption
        self.caption.set_enabled(not image.caption_fault)
        self.leave_out.set_visibility(there.recipe_writer is not None)
        self.leave_out.text = "Use again" if image.is_left_out else "Leave out"
        self.no_mask.set_visibility(bool(image.mask_path))
        self._facts(image)
        self.findings.clear()
        with self.findings:
            for one in image.badges:
                with ui.element("div").classes("finding"):
                    text(one.title, tag="span").classes(f"pill {one.severity}")
                    text(f"{one.detail}. {one.advice}").classes("small")

    def _facts(self, image: DatasetImage) -> None:
        size = f"{image.size[0]}×{image.size[1]} pixels" if image.size else "not looked at yet"
        rows = [("size", size), ("bucket", image.bucket), ("mask", image.mask)]
        if image.crop:
            rows.append(("cropped away", f"{1 - image.crop[2] * image.crop[3]:.0%}"))
        rows += [("not used", image.excluded), ("caption file", image.caption_fault)]
        if image.role != "instance":
            rows.append(("role", image.role))
        self.facts.clear()
        with self.facts:
            facts([(title, words) for title, words in rows if words])

    def _go(self, step: int) -> None:
        images = self.page.chosen()
        names = [one.name for one in images]
        if self.image is not None and self.image.name in names:
            self.open(images[(names.index(self.image.name) + step) % len(images)])

    async def _typed(self) -> None:
        """Count what is in the field now; of answers that come late only the last is shown."""
        self._counting += 1
        mine, words, there = self._counting, str(self.caption.value or ""), self.page.there
        if there is None:
            return
        try:
            if not there.base or reads_with_clip(glance_at_base(there.base)):
                found = count_tokens(words, clip_tokenizers(), max_chunks=there.max_chunks)
            else:
                asked = studio().kept.call(count_for, there.base, words, there.max_chunks)
                found = await asyncio.wrap_future(asked)
        except StudioError as error:
            self.tokens.say(f"tokens cannot be counted: {error}")
            return
        if mine == self._counting:
            self._counted(found)

    def _counted(self, found: TokenCount) -> None:
        self.tokens.say(f"{found.tokens} tokens of {found.window} that are read" if found.window else "")
        self.lost.say(f"not read: {found.lost}" if found.lost else "")

    def _save(self) -> None:
        assert self.image is not None
        self.page.save(self.image, str(self.caption.value or ""))
        ui.notify("saved", type="positive")

    def _leave_out(self) -> None:
        image, there = self.image, self.page.there
        assert image is not None and there is not None and there.recipe_writer is not None
        left_out = not image.is_left_out
        set_left_out(there.dataset.target, image.name, there.recipe_writer, left_out=left_out)
        there.dataset.mark(image.name, left_out=left_out)
        self._changed()

    def _remove_mask(self) -> None:
        image, there = self.image, self.page.there
        assert image is not None and there is not None
        studio().folders.resolve(image.mask_path)
        remove_mask(image, there.writer)
        there.dataset.read_mask(image.name)
        self._changed()

    def _focus(self, event: GenericEventArguments) -> None:
        image, there = self.image, self.page.there
        assert image is not None and there is not None
        point = event.args.get("point")
        try:
            studio().folders.resolve(image.path.parent)
            given = (float(point[0]), float(point[1])) if point else None
            set_focus(image, given, there.writer)
            there.dataset.place(image.name, given)
        except StudioError as error:
            say_fault(error)
        except (TypeError, ValueError, IndexError):
            say_fault(StudioError(f"{shown(str(point), limit=100)} is no point."))
        self._changed()

    def _painted(self) -> None:
        assert self.image is not None and self.page.there is not None
        self.page.there.dataset.read_mask(self.image.name)
        self._changed()

    def _changed(self) -> None:
        assert self.image is not None
        self.page.changed(self.image.name)
        self.refresh()

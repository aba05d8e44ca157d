"""What is done to all captions of a set: find and replace with a preview, statistics, a captioner."""

from __future__ import annotations

import asyncio
import json
from typing import Protocol

from nicegui import background_tasks, ui

from lora_studio.data.captioners import CAPTION_WRITERS
from lora_studio.data.captions.find_replace import CaptionChange
from lora_studio.data.captions.statistics import Statistics
from lora_studio.errors import StudioError
from lora_studio.text import plural, shown
from lora_studio.web.dataset.captions import apply, changes_in, statistics
from lora_studio.web.dataset.opened import OpenDataset
from lora_studio.web.dataset.watching import watch
from lora_studio.web.pages.frame import Words, fault_box, heading, say_fault, text, told, told_later
from lora_studio.web.pages.parts import Bar, facts, table

_MOST_SHOWN = 100
_CAPTIONING = "lora_studio.web.dataset.captioning"
_REPLACE = {
    "nothing": "only where there is none",
    "generated": "also a captioner's that no one edited",
    "all": "all, a copy is kept",
}


class CaptionsPage(Protocol):
    """What shows the set."""

    there: OpenDataset | None
    box: ui.element

    async def reopen(self) -> None: ...


class CaptionTools:
    """Three buttons, each with a dialog."""

    def __init__(self, page: CaptionsPage) -> None:
        self.page = page
        self._found: list[CaptionChange] = []
        self._work: asyncio.Task[None] | None = None
        for title, icon, act in (
            ("Find and replace", "find_replace", self._find),
            ("Statistics", "bar_chart", told_later(self._statistics)),
            ("Write captions", "edit_note", self._write),
        ):
            ui.button(title, icon=icon, on_click=act).props("flat dense no-caps").classes("quiet")

    def _find(self) -> None:
        with ui.dialog().props("aria-label='Find and replace'") as dialog, ui.card().classes("tool-card"):
            heading("Find and replace in captions", level=2)
            with ui.element("div").classes("row"):
                self.find = (
                    ui.input("Find", on_change=self._preview)
                    .props("outlined dense debounce=350")
                    .classes("grow")
                )
                self.instead = ui.input("Replace with", on_change=self._preview)
                self.instead.props("outlined dense debounce=350").classes("grow")
                self.regex = ui.checkbox("regular expression", on_change=self._preview)
            self.preview = ui.element("div").classes("stack tight preview").props("aria-live=polite")
            with ui.element("div").classes("row"):
                self.do = ui.button("Replace", on_click=told(lambda: self._replace(dialog)))
                self.do.props("flat no-caps").classes("primary").set_enabled(False)
                ui.button("Close", on_click=dialog.close).props("flat no-caps").classes("quiet")
        dialog.on("hide", dialog.delete)
        dialog.open()

    async def _preview(self) -> None:
        assert self.page.there is not None
        self._found, fault = [], ""
        words, instead = str(self.find.value or ""), str(self.instead.value or "")
        if words:
            given = (self.page.there.dataset, words, instead)
            try:
                self._found = await asyncio.to_thread(changes_in, *given, regex=self.regex.value)
            except StudioError as error:
                fault = str(error)
        self.preview.clear()
        with self.preview:
            if fault:
                fault_box(fault)
            elif words:
                self._changes()
        self.do.set_enabled(any(not one.fault for one in self._found))

    def _changes(self) -> None:
        possible = sum(not one.fault for one in self._found)
        text(f"{plural(possible, 'caption')} would change; a copy of each is kept").classes("small soft")
        for one in self._found[:_MOST_SHOWN]:
            with ui.element("div").classes("change"):
                text(one.name, tag="span").classes("small soft")
                text(one.file.text, tag="del")
                text(one.after, tag="ins")
                if one.fault:
                    text(f"stays as it is: {one.fault}").classes("small lost")
        if len(self._found) > _MOST_SHOWN:
            text(f"and {len(self._found) - _MOST_SHOWN:,} more").classes("small soft")

    def _replace(self, dialog: ui.dialog) -> None:
        assert self.page.there is not None
        done = apply(self._found, self.page.there.writer)
        ui.notify(f"{plural(done, 'caption')} changed; Undo takes that back", type="positive")
        dialog.close()
        background_tasks.create(told_later(self.page.reopen)())

    async def _statistics(self) -> None:
        assert self.page.there is not None
        found = await asyncio.to_thread(statistics, self.page.there.dataset)
        named = "aria-label='Statistics of the captions'"
        with self.page.box, ui.dialog().props(named) as dialog, ui.card().classes("tool-card"):
            heading("What the captions have in common", level=2)
            with ui.element("div").classes("tool-body"):
                _show_statistics(found)
            ui.button("Close", on_click=dialog.close).props("flat no-caps").classes("quiet")
        dialog.on("hide", dialog.delete)
        dialog.open()

    def _write(self) -> None:
        there = self.page.there
        assert there is not None
        with (
            ui.dialog().props("persistent aria-label='Write captions'") as dialog,
            ui.card().classes("tool-card"),
        ):
            heading("Write captions", level=2)
            names = [name for name in CAPTION_WRITERS.names() if name != "endpoint"]
            self.writer = ui.select(names, value="filename", label="Captioner").props("outlined dense")
            text(
                "filename and template need no model; the others download one when they are used first."
            ).classes("small soft")
            self.trigger = ui.input("Trigger, put first where it lacks", value=there.dataset.trigger)
            self.trigger.props("outlined dense")
            self.class_words = ui.input("What it is one of, e.g. dog").props("outlined dense")
            self.which = ui.select(_REPLACE, value="nothing", label="Which captions").props("outlined dense")
            self.bar, self.said = Bar("images with a caption"), Words("p", "")
            self.said.classes("small soft").props("aria-live=polite")
            with ui.element("div").classes("row"):
                self.begin = ui.button("Begin", on_click=self._begin).props("flat no-caps")
                self.begin.classes("primary")
                ui.button("Stop and close", on_click=lambda: self._end(dialog)).props("flat no-caps").classes(
                    "quiet"
                )
        dialog.open()

    def _begin(self) -> None:
        self.begin.set_enabled(False)
        self._work = background_tasks.create(self._caption())

    async def _caption(self) -> None:
        there = self.page.there
        assert there is not None
        total = faults = written = 0
        for source in there.dataset.sources:
            asked = {"folder": str(source.folder), "writer": self.writer.value, "replace": self.which.value}
            asked |= {"trigger": self.trigger.value or "", "class_words": self.class_words.value or ""}
            asked |= {"recursive": source.reading.recursive}
            try:
                found = await watch(_CAPTIONING, json.dumps(asked), on_progress=self._progress)
            except StudioError as error:
                self.said.say(str(error))
                self.begin.set_enabled(True)
                return
            written, faults, total = written + found["written"], faults + len(found["faults"]), total + 1
        why = f"; {plural(faults)} still without one" if faults else ""
        self.said.say(f"{plural(written, 'caption')} written{why}")
        self.bar.share(1.0)

    def _progress(self, done: int, total: int) -> None:
        self.bar.share(done / total if total else 1.0)
        self.said.say(f"{done} of {plural(total)}")

    async def _end(self, dialog: ui.dialog) -> None:
        if self._work is not None:
            self._work.cancel()
        dialog.close()
        dialog.delete()
        try:
            await self.page.reopen()
        except StudioError as error:
            say_fault(error)


def _show_statistics(found: Statistics) -> None:
    rows = [("images", str(found.images)), ("with a caption", str(found.captioned))]
    rows += [(who, str(count)) for who, count in found.written_by.items()]
    if found.without_trigger is not None:
        rows.append(("without the trigger", str(len(found.without_trigger))))
    rows.append(("with several lines", str(found.several_lines)))
    facts(rows)
    for title, counts in (
        ("tags", found.tags),
        ("words", found.words),
        ("identical captions", found.identical),
    ):
        if counts:
            heading(title.capitalize(), level=3)
            table(
                [title, "captions"],
                [(shown(one.what, limit=160), str(one.captions)) for one in counts],
                numbers=[1],
            )

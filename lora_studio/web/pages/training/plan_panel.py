"""The plan beside a recipe: memory, time and disk by a trial step, then start or queue."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from nicegui import background_tasks, ui

from lora_studio.errors import StudioError
from lora_studio.jobs import Job
from lora_studio.text import shown
from lora_studio.web.forms.draft import RecipeDraft
from lora_studio.web.pages.frame import fault_box, heading, text, told
from lora_studio.web.pages.parts import facts
from lora_studio.web.pages.training.plan_rows import plan_rows
from lora_studio.web.studio import studio


class PlannedPage(Protocol):
    """What has the recipe."""

    draft: RecipeDraft | None

    def save(self) -> Path: ...

    def queue(self) -> Job: ...


class PlanPanel:
    """Draws itself; `refresh` when the recipe has changed."""

    def __init__(self, page: PlannedPage) -> None:
        self.page = page
        self._work: asyncio.Task[None] | None = None
        self._planned = ""
        ui.context.client.on_delete(self._cancel)
        with ui.element("section").classes("panel"):
            heading("Plan", level=2)
            self.state = text("What it takes is measured by a trial step.")
            self.state.classes("small soft").props("aria-live=polite")
            self.found = ui.element("div").classes("stack tight")
            with ui.element("div").classes("row"):
                self.begin = (
                    ui.button("Plan", on_click=told(self._begin)).props("flat no-caps").classes("quiet")
                )
                self.cancel = (
                    ui.button("Cancel", on_click=self._cancel).props("flat no-caps").classes("quiet")
                )
                self.cancel.set_visibility(False)
                self.spinner = ui.spinner(size="sm")
                self.spinner.set_visibility(False)
            with ui.element("div").classes("row"):
                self.start = ui.button("Start", icon="play_arrow", on_click=told(self._start))
                self.start.props("flat no-caps").classes("primary")
                ui.button("Save recipe", on_click=told(self._save)).props("flat no-caps").classes("quiet")
                self.images = ui.button("Look at the images", on_click=told(self._look))
                self.images.props("flat no-caps").classes("quiet")
            words = "It waits in the queue until the machine is free, and goes on when this page is closed."
            text(words).classes("small soft")

    def refresh(self) -> None:
        """Whether it can start, and whether the plan is still of this recipe."""
        draft = self.page.draft
        faults = len(draft.faults) if draft else 0
        self.start.set_enabled(not faults)
        self.begin.set_enabled(not faults and self._work is None)
        if faults:
            self.state.say(
                f"{faults} fault{'s' if faults > 1 else ''} in the recipe: they stand at their fields."
            )
        elif self._planned and draft and draft.text != self._planned:
            self.state.say("The recipe has changed since it was planned.")
        elif not self._planned:
            self.state.say("What it takes is measured by a trial step.")

    def _save(self) -> None:
        ui.notify(shown(f"saved as {studio().folders.shortened(self.page.save())}"), type="positive")

    def _look(self) -> None:
        path = self.page.save()
        ui.navigate.to(f"/dataset?target={quote(studio().folders.shortened(path))}", new_tab=True)

    def _begin(self) -> None:
        path = self.page.save()
        assert self.page.draft is not None
        self._work = background_tasks.create(self._plan(str(path), self.page.draft.text))
        self._busy(True)
        self.state.say("A trial step is made ...")

    def _busy(self, busy: bool) -> None:
        self.spinner.set_visibility(busy)
        self.cancel.set_visibility(busy)
        self.begin.set_enabled(not busy)

    async def _plan(self, path: str, words: str) -> None:
        try:
            found = await studio().verbs.run("plan", path, invalid_is_fine=True)
        except StudioError as error:
            fault: str | None = str(error)
        except asyncio.CancelledError:
            fault = "The plan was cancelled."
        else:
            fault = None
        self._work = None
        if self.found.is_deleted:  # the page was closed
            return
        with self.found:
            self.found.clear()
            if fault is None:
                self._planned = words
                self.state.say("By a trial step on this machine:")
                _figures(found)
            else:
                self.state.say("")
                fault_box(fault)
        self._busy(False)

    def _cancel(self) -> None:
        if self._work is not None:
            self._work.cancel()

    def _start(self) -> None:
        job = self.page.queue()
        ui.notify(f"job {job.id} is in the queue", type="positive")
        ui.navigate.to("/")


def _figures(found: dict[str, Any]) -> None:
    """What `lora-studio plan --json` says, in a few rows."""
    rows, fault = plan_rows(found)
    if fault:
        fault_box(fault)
    facts(rows)

"""Previews: the base and what was tuned, one over the other, over all steps that were drawn."""

from __future__ import annotations

from nicegui import ui

from lora_studio.errors import StudioError
from lora_studio.recipe.run_recipe import load_run_recipe
from lora_studio.text import shown
from lora_studio.web.live import RunNow, preview_sheets
from lora_studio.web.pages.frame import Words, heading, text
from lora_studio.web.pages.parts import api_address

_UNCOVER = "(e) => e.target.parentElement.style.setProperty('--at', e.target.value + '%')"


class PreviewTimeline:
    """A pair for each prompt, and a slider over the steps; it follows the newest until it is moved."""

    def __init__(self, run: RunNow) -> None:
        self._run = run
        self._sheets: list[str] = []
        self._pairs: list[ComparedImages] = []
        self._follows = True
        with ui.element("section").classes("panel"):
            with ui.element("div").classes("row spread"):
                heading("Previews: base left, tuned right of the line", level=2)
                self._title = Words("span", "")
                self._title.classes("soft numbers")
            self._none = text("None are drawn yet.").classes("soft")
            self._slider = ui.slider(min=0, max=0, step=1, value=0, on_change=self._moved)
            self._slider._props["aria-label"] = "Step of the previews"
            self._grid = ui.element("div").classes("previews")
        self.look(run)

    def look(self, run: RunNow) -> None:
        """Go on to a sheet that is new."""
        sheets = preview_sheets(run.folder)
        if sheets == self._sheets:
            return
        self._sheets = sheets
        self._none.set_visibility(not sheets)
        self._slider.set_visibility(len(sheets) > 1)
        if not self._pairs:
            self._make_pairs(run)
        self._slider._props["max"] = max(0, len(sheets) - 1)
        self._slider.update()
        if self._follows and sheets:
            self._slider.set_value(len(sheets) - 1)
            self._show(len(sheets) - 1)

    def _make_pairs(self, run: RunNow) -> None:
        try:
            prompts = load_run_recipe(run.folder).samples.prompts
        except StudioError:
            return  # its recipe is not written yet
        with self._grid:
            self._pairs = [ComparedImages(run.id, row, prompt) for row, prompt in enumerate(prompts)]

    def _moved(self) -> None:
        number = int(self._slider.value or 0)
        self._follows = number >= len(self._sheets) - 1
        self._show(number)

    def _show(self, number: int) -> None:
        if not 0 <= number < len(self._sheets):
            return
        sheet = self._sheets[number]
        self._title.say(f"step {int(sheet[5:-4])}")
        for pair in self._pairs:
            pair.show(sheet)


class ComparedImages:
    """Two images of a prompt on one place; a line between them moves."""

    def __init__(self, run: str, row: int, prompt: str) -> None:
        self._run, self._row = run, row
        with ui.element("figure").classes("pair"):
            with ui.element("div").classes("compare"):
                self._base = ui.element("img").props("loading=lazy draggable=false")
                self._tuned = ui.element("img").props("loading=lazy draggable=false").classes("over")
                line = ui.element("input").props("type=range min=0 max=100 value=50")
                line._props["aria-label"] = f"Uncover the base under: {shown(prompt, limit=80)}"
                line.on("input", js_handler=_UNCOVER)
            text(prompt, tag="figcaption")
        self._base._props["alt"] = f"base: {shown(prompt, limit=200)}"
        self._tuned._props["alt"] = f"tuned: {shown(prompt, limit=200)}"

    def show(self, sheet: str) -> None:
        """Both images of a sheet."""
        for column, image in enumerate((self._base, self._tuned)):
            image._props["src"] = api_address(self._run, "previews", sheet, str(self._row), f"{column}.png")
            image.update()

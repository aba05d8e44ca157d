"""Previews: the base and what was tuned, one over the other, over all steps that were drawn."""

from __future__ import annotations

from collections.abc import Sequence

from nicegui import ui

from lora_studio.errors import StudioError
from lora_studio.evaluate.preview_sheet import prompts_on
from lora_studio.recipe.preview_prompts import ask_for_prompts, asked_prompts
from lora_studio.recipe.run_recipe import load_run_recipe
from lora_studio.text import plural, shown
from lora_studio.web.live import RunNow
from lora_studio.web.pages.frame import Words, heading, text, told
from lora_studio.web.pages.parts import api_address
from lora_studio.web.studio import studio

_UNCOVER = "(e) => e.target.parentElement.style.setProperty('--at', e.target.value + '%')"


class PreviewTimeline:
    """A pair for each prompt, and a slider over the steps; it follows the newest until it is moved."""

    def __init__(self, run: RunNow) -> None:
        self._run = run
        self._sheets: list[str] = []
        self._pairs: list[ComparedImages] = []
        self._prompts: tuple[str, ...] = ()  # of the pairs
        self._follows = True
        with ui.element("section").classes("panel"):
            with ui.element("div").classes("row spread"):
                heading("Previews: base left, tuned right of the line", level=2)
                self._title = Words("span", "")
                self._title.classes("soft numbers")
            self._none = text("None are drawn yet.").classes("soft")
            self._slider = ui.slider(min=0, max=0, step=1, value=0, on_change=self._moved)
            self._slider._props["aria-label"] = "Step of the previews"
            self._slider.set_visibility(False)
            self._grid = ui.element("div").classes("previews")

    def look(self, run: RunNow, sheets: Sequence[str]) -> None:
        """Go on to a sheet that is new."""
        sheets = [*sheets]
        if sheets == self._sheets:
            return
        self._sheets = sheets
        self._none.set_visibility(not sheets)
        self._slider.set_visibility(len(sheets) > 1)
        self._slider._props["max"] = max(0, len(sheets) - 1)
        self._slider.update()
        if self._follows and sheets:
            self._slider.set_value(len(sheets) - 1)
            self._show(len(sheets) - 1)

    def _pair(self, sheet: str) -> None:
        """A pair for each prompt of a sheet, which may have others than the one before."""
        folder = self._run.folder
        try:
            prompts = prompts_on(folder / "previews" / sheet) or load_run_recipe(folder).samples.prompts
        except StudioError:
            return  # its recipe is not written yet
        if prompts == self._prompts:
            return
        self._prompts = prompts
        self._grid.clear()
        with self._grid:
            self._pairs = [ComparedImages(self._run.id, row, one) for row, one in enumerate(prompts)]

    def _moved(self) -> None:
        number = int(self._slider.value or 0)
        self._follows = number >= len(self._sheets) - 1
        self._show(number)

    def _show(self, number: int) -> None:
        if not 0 <= number < len(self._sheets):
            return
        sheet = self._sheets[number]
        self._pair(sheet)
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


class PreviewPrompts:
    """What the next previews show, while the run is at work; one prompt a line."""

    def __init__(self, run: RunNow) -> None:
        self._run, self._at_work = run, False
        with ui.element("section").classes("panel") as self._panel:
            heading("Prompts of the previews", level=2)
            self._field = ui.textarea("One a line").props("outlined autogrow").classes("full")
            words = "Drawn from the next previews on; the last ones have the recipe's again."
            text(words).classes("small soft")
            button = ui.button("Change the prompts", on_click=told(self._change))
            button.props("flat no-caps").classes("quiet self-start")
        self._panel.set_visibility(False)

    def look(self, run: RunNow) -> None:
        """There only while it is of use, with the prompts that are drawn now."""
        if run.at_work == self._at_work or run.steps is None:
            return
        try:
            samples = load_run_recipe(run.folder).samples
        except StudioError:
            return  # its recipe is being written
        self._at_work = run.at_work
        self._panel.set_visibility(run.at_work and samples.every > 0 and bool(samples.prompts))
        self._field.value = "\n".join(asked_prompts(run.folder) or samples.prompts)

    def _change(self) -> None:
        lines = [one.strip() for one in str(self._field.value or "").splitlines()]
        asked = ask_for_prompts(studio().folders.resolve(self._run.folder), [one for one in lines if one])
        ui.notify(f"{plural(len(asked), 'prompt')} from the next previews on.", type="positive")

"""A field for a path, with the folders that the page may use to choose it from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from nicegui import ui

from lora_studio.errors import StudioError
from lora_studio.text import shown
from lora_studio.web.pages.frame import Words, heading, say_fault, text
from lora_studio.web.studio import studio

_MOST_ENTRIES = 500


class PathField:
    """A path as text, and a button that shows folders. `endings`: of files that may be chosen."""

    def __init__(
        self,
        label: str,
        *,
        endings: Sequence[str] = (),
        folders: bool = True,
        on_choose: Callable[[], Awaitable[None]],
    ) -> None:
        self.endings, self.folders, self._on_choose = tuple(endings), folders, on_choose
        with ui.element("div").classes("row path-field"):
            self.input = ui.input(label).props("outlined dense").classes("grow")
            self.input.on("keydown.enter", on_choose)
            button = ui.button(icon="folder_open", on_click=self._browse).props("flat dense").classes("quiet")
            button._props["aria-label"] = f"Choose: {label}"

    @property
    def value(self) -> str:
        return str(self.input.value or "").strip()

    @value.setter
    def value(self, path: str) -> None:
        self.input.value = path

    def resolved(self) -> Path:
        """Raises StudioError for what lies outside of the folders, or if it is empty."""
        if not self.value:
            raise StudioError(f"{self.input.label} is empty; name a folder or a file.")
        return studio().folders.resolve(self.value)

    def _browse(self) -> None:
        with ui.dialog().props("aria-label='Choose'") as dialog, ui.card().classes("picker"):
            heading("Choose a folder" if not self.endings else "Choose", level=2)
            self._box = ui.element("div").classes("stack tight")
        self._dialog = dialog
        start = studio().folders.project
        if self.value and studio().folders.allows(self.value):
            there = studio().folders.resolve(self.value)
            start = next((one for one in (there, there.parent) if one.is_dir()), start)
            start = start if studio().folders.allows(start) else studio().folders.project
        self._show(start)
        dialog.open()

    def _show(self, folder: Path) -> None:
        """What is in the folder, with a way up as far as that is allowed."""
        self._box.clear()
        with self._box:
            Words("p", str(folder)).classes("path")
            with ui.element("div").classes("row"):
                for root in studio().folders.roots if len(studio().folders.roots) > 1 else ():
                    ui.button(shown(root.name), on_click=lambda at=root: self._show(at)).classes(
                        "quiet"
                    ).props("flat dense no-caps")
                if studio().folders.allows(folder.parent):
                    ui.button("Up", icon="arrow_upward", on_click=lambda: self._show(folder.parent)).classes(
                        "quiet"
                    ).props("flat dense")
                if self.folders:
                    ui.button("Take this folder", on_click=lambda: self._take(folder)).classes(
                        "primary"
                    ).props("flat dense no-caps")
            with ui.element("ul").classes("picker-list"):
                try:
                    self._entries(folder)
                except OSError as error:
                    say_fault(StudioError(f"{folder} cannot be read ({error.strerror or error})."))

    def _entries(self, folder: Path) -> None:
        there = sorted(folder.iterdir(), key=lambda one: (not one.is_dir(), one.name.casefold()))
        kept = [one for one in there if not one.name.startswith(".") and self._is_offered(one)]
        for one in kept[:_MOST_ENTRIES]:
            with ui.element("li"):
                is_folder = one.is_dir()
                act = (lambda at=one: self._show(at)) if is_folder else (lambda at=one: self._take(at))
                button = ui.button(icon="folder" if is_folder else "draft", on_click=act)
                button.props("flat no-caps align=left").classes("picker-entry")
                with button:
                    text(one.name, tag="span")
        if len(kept) > _MOST_ENTRIES:
            text(f"and {len(kept) - _MOST_ENTRIES:,} more; type the path.").classes("soft small")
        if not kept:
            text("nothing to choose in here", tag="li").classes("soft small")

    def _is_offered(self, path: Path) -> bool:
        if not studio().folders.allows(path):
            return False
        return path.is_dir() or path.suffix.lower() in self.endings

    async def _take(self, path: Path) -> None:
        self.value = studio().folders.shortened(path) if path != studio().folders.project else str(path)
        self._dialog.close()
        await self._on_choose()

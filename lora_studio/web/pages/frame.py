"""What stands around every page: navigation, light and dark, where the queue cannot be read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from nicegui import ui

from lora_studio.errors import StudioError
from lora_studio.text import shown
from lora_studio.version import __version__
from lora_studio.web.studio import studio


class NavigationEntry(NamedTuple):
    """Where a page lies, and how it is called."""

    address: str
    title: str
    icon: str  # of Material Icons, which NiceGUI has with it


PLACES = (
    NavigationEntry("/", "Runs", "stacked_line_chart"),
    NavigationEntry("/new", "New training", "add_circle_outline"),
    NavigationEntry("/dataset", "Dataset", "photo_library"),
    NavigationEntry("/results", "Results", "fact_check"),
    NavigationEntry("/files", "LoRA files", "layers"),
)

# Before the page is drawn, so that it is never white at night; the choice stays in the browser alone.
_THEME = """
<script>
  window.studioTheme = {
    now: () => localStorage.getItem("lora-studio-theme") || "auto",
    dark: () => studioTheme.now() === "dark" ||
      (studioTheme.now() === "auto" && matchMedia("(prefers-color-scheme: dark)").matches),
    apply: () => {
      document.documentElement.classList.toggle("dark", studioTheme.dark());
      document.body?.classList.toggle("body--dark", studioTheme.dark());
      document.body?.classList.toggle("body--light", !studioTheme.dark());
      window.Quasar?.Dark.set(studioTheme.dark());
    },
    turn: () => {
      localStorage.setItem("lora-studio-theme", studioTheme.dark() ? "light" : "dark");
      studioTheme.apply();
    },
  };
  studioTheme.apply();
  addEventListener("load", studioTheme.apply);
  document.documentElement.lang = "en";
</script>
"""


@cache
def _style() -> str:
    return files(__package__).joinpath("style.css").read_text("utf-8")


@contextmanager
def frame(title: str, *, here: str = "", wide: bool = False) -> Iterator[None]:
    """The content goes inside. `here`: the address of its entry in the navigation."""
    ui.page_title(f"{shown(title)} - LoRA Studio")
    ui.add_head_html(f"<style>{_style()}</style>{_THEME}")
    with ui.element("header").classes("top"):
        ui.link("Skip to content", "#content").classes("skip")
        ui.link("LoRA Studio", "/").classes("brand")
        with ui.element("nav").props('aria-label="Pages"'):
            for place in PLACES:
                _entry(place, current=place.address == here)
        theme = ui.button(icon="contrast").props('flat round dense aria-label="Light or dark"')
        theme.on("click", js_handler="() => studioTheme.turn()").classes("theme")
    with ui.element("div").props("id=content tabindex=-1").classes("content wide" if wide else "content"):
        trouble()
        yield
    with ui.element("footer").classes("bottom"):
        text(f"LoRA Studio {__version__}")
        text(str(studio().folders.project)).classes("path")
        ui.link("REST API", "/api", new_tab=True)


def _entry(place: NavigationEntry, *, current: bool) -> None:
    with ui.link(target=place.address).classes("entry" + (" current" if current else "")) as link:
        ui.icon(place.icon).props("aria-hidden=true")
        ui.label(place.title)
    if current:
        link.props("aria-current=page")


def trouble() -> None:
    """What stands in the way of everything, kept up to date."""
    box = ui.element("div").props("role=status").classes("trouble")
    said = ""

    def look() -> None:
        nonlocal said
        fault = studio().live.fault or studio().trouble
        if fault != said:
            said = fault
            box.clear()
            if fault:
                with box:
                    fault_box(fault)

    look()
    ui.timer(2.0, look)


def text(words: str, *, tag: str = "p") -> Words:
    """Words from anywhere, as they are: control characters spelled out, nothing taken for HTML."""
    return Words(tag, words)


class Words(ui.element):
    """An element with a text, which can be changed."""

    def __init__(self, tag: str, words: str) -> None:
        super().__init__(tag)
        self.say(words)

    def say(self, words: str) -> None:
        """Show these instead."""
        if (harmless := shown_lines(words)) != self._text:
            self._text = harmless
            self.update()


def shown_lines(words: str) -> str:
    """Harmless, with its lines."""
    return "\n".join(map(shown, words.split("\n")))


def heading(words: str, *, level: int = 1) -> Words:
    return text(words, tag=f"h{level}")


def fault_box(fault: str, *, log: str = "") -> ui.element:
    """The sentence that the command line prints, with a link to the log."""
    with ui.element("div").props("role=alert").classes("fault") as box:
        text(fault)
        if log:
            ui.link("Open the log", log, new_tab=True)
    return box


def say_fault(error: StudioError) -> None:
    """For what a button could not do."""
    ui.notify(shown_lines(str(error)), type="negative", multi_line=True, timeout=0, close_button="Close")


def told(act: Callable[[], object]) -> Callable[[], None]:
    """The action, whose StudioError is shown instead of raised."""

    def tried() -> None:
        try:
            act()
        except StudioError as error:
            say_fault(error)

    return tried


def told_later(act: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[None]]:
    """Likewise, of one that takes a while."""

    async def tried() -> None:
        try:
            await act()
        except StudioError as error:
            say_fault(error)

    return tried

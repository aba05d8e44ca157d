"""Parts that pages share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from urllib.parse import quote

from nicegui import ui

from lora_studio.text import in_words
from lora_studio.web.pages.frame import Words, text


def run_address(run: str) -> str:
    return f"/run/{quote(run, safe='')}"


def results_address(run: str) -> str:
    return f"/results/{quote(run, safe='')}"


def api_address(run: str, *parts: str) -> str:
    """Of something of a run in the API, for images and links."""
    return "/".join(["/api/runs", quote(run, safe=""), *(quote(one) for one in parts)])


def pill(state: str) -> Words:
    """A state, in its colour and in words."""
    made = Words("span", in_words(state))
    made.classes(f"pill {state if state.isalpha() else ''}")
    return made


def facts(rows: Iterable[tuple[str, str]]) -> None:
    """Titles and texts; a row without a title goes on with the one above."""
    joined: list[tuple[str, str]] = []
    for title, words in rows:
        if title or not joined:
            joined.append((title, words))
        else:
            joined[-1] = (joined[-1][0], f"{joined[-1][1]}\n{words}")
    with ui.element("dl").classes("facts"):
        for title, words in joined:
            text(title, tag="dt")
            text(words, tag="dd")


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = ()) -> None:
    """Texts in rows; the columns `numbers` stand to the right."""
    with ui.element("div").classes("scroll-x").props("tabindex=0"), ui.element("table").classes("table"):
        with ui.element("thead"), ui.element("tr"):
            for number, title in enumerate(titles):
                text(title, tag="th").props("scope=col").classes("number" if number in numbers else "")
        with ui.element("tbody"):
            for row in rows:
                with ui.element("tr"):
                    for number, cell in enumerate(row):
                        text(cell, tag="td").classes("number" if number in numbers else "")


class Bar(ui.element):
    """How much of something is done."""

    def __init__(self, label: str) -> None:
        super().__init__("div")
        self.classes("bar").props(f'role=progressbar aria-valuemin=0 aria-valuemax=100 aria-label="{label}"')
        self._percent = -1
        with self:
            self._inner = ui.element("div")
        self.share(0.0)

    def share(self, done: float) -> None:
        """0 to 1."""
        percent = round(100 * min(1.0, max(0.0, done)))
        if percent == self._percent:
            return
        self._percent = percent
        self.props(f"aria-valuenow={percent}")
        self._inner.style(f"width: {percent}%")


def sparkline(values: Sequence[float], *, width: int = 120, height: int = 28) -> str:
    """An SVG of the course of some numbers; nothing but numbers goes into it."""
    finite = [one for one in values if math.isfinite(one)]
    if len(finite) < 2:
        return ""
    low, high = min(finite), max(finite)
    span = (high - low) or 1.0
    points = " ".join(
        f"{number * width / (len(finite) - 1):.1f},{2 + (height - 4) * (high - one) / span:.1f}"
        for number, one in enumerate(finite)
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" aria-hidden="true" '
        'preserveAspectRatio="none"><polyline fill="none" stroke="currentColor" stroke-width="1.5" '
        f'stroke-linejoin="round" points="{points}"/></svg>'
    )

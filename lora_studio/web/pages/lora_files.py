"""Finished LoRA files of any spelling: inspected, compared, combined, made smaller and converted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nicegui import ui

from lora_studio.errors import StudioError
from lora_studio.text import file_size, in_words, shown
from lora_studio.web.api.uploads import FOLDER
from lora_studio.web.pages.file_metadata import MetadataEditor, free_copy
from lora_studio.web.pages.frame import fault_box, frame, heading, text, told_later
from lora_studio.web.pages.parts import facts, pill
from lora_studio.web.pages.results import verdict_in_words
from lora_studio.web.studio import studio

_SPELLINGS = ("kohya", "diffusers", "comfy", "sd_scripts")
_METHODS = {
    "concat": "their exact sum",
    "svd": "their sum, cut to a rank",
    "ties": "trimmed, by the sign of most",
    "dare": "a random part of each, scaled up",
    "project": "the first untouched",
}
_MOST_FILES = 500
_DROP = """async (e) => {
  const files = [...(e.dataTransfer?.files || e.target.files || [])];
  for (const file of files) {
    const answer = await fetch("/api/uploads/" + encodeURIComponent(file.name), {method: "PUT", body: file});
    emitEvent("dropped", await answer.json());
  }
}"""


@ui.page("/files")
def lora_files() -> None:
    """Choose or drop a file; what it is stands below, and what can be made of it."""
    with frame("LoRA files", here="/files"):
        heading("LoRA files")
        FileTools()


def known_files() -> dict[str, str]:
    """The LoRA files in the allowed folders: path -> how it is shown. Folders are looked into three deep."""
    there = studio().folders
    patterns = ("*.safetensors", "*/*.safetensors", "*/*/*.safetensors")
    found: dict[str, str] = {}
    for root in there.roots:
        for pattern in patterns:
            for path in sorted(root.glob(pattern)):
                if len(found) < _MOST_FILES and path.is_file() and there.allows(path):
                    found[str(path)] = there.shortened(path)
    return found


class FileTools:
    """The chosen file or files, and the tools for one and for several."""

    def __init__(self) -> None:
        with ui.element("section").classes("panel"):
            self._choice = ui.select(
                known_files(), label="Files of this folder", multiple=True, with_input=True
            )
            self._choice.props("outlined use-chips").classes("full")
            self._drop_zone()
            with ui.element("div").classes("row"):
                self._button("Inspect", self._inspect, "primary")
                self._button("Compare two", self._compare)
        with ui.element("div").classes("columns thirds"):
            self._combining()
            self._resizing()
            self._converting()
        self._answer = ui.element("div").classes("stack").props("aria-live=polite")

    def _button(self, title: str, act: Callable[[], Any], kind: str = "quiet") -> None:
        ui.button(title, on_click=told_later(act)).props("flat no-caps").classes(f"{kind} self-start")

    def _drop_zone(self) -> None:
        with ui.element("label").classes("drop") as zone:
            ui.icon("upload_file").props("aria-hidden=true")
            ui.label("Drop .safetensors files here, or choose them")
            picked = ui.element("input").props("type=file accept=.safetensors multiple")
            picked._props["aria-label"] = "Choose LoRA files"
            picked.on("change", js_handler=_DROP)
        zone.on("dragover.prevent", js_handler="() => {}")
        zone.on("drop.prevent", js_handler=_DROP)
        ui.on("dropped", lambda event: self._dropped(event.args))

    def _dropped(self, answer: Mapping[str, Any]) -> None:
        if "error" in answer:
            with self._answer:
                fault_box(str(answer["error"]))
            return
        path = str(studio().folders.resolve(str(answer.get("file", "")), within=None))
        self._choice.set_options(known_files(), value=[*(self._choice.value or []), path])
        ui.notify(f"Kept in {FOLDER}: {shown(Path(path).name)}")

    def _chosen(self, *, least: int, most: int | None = None) -> list[Path]:
        """Raises StudioError for another number of files."""
        paths = [studio().folders.resolve(one) for one in self._choice.value or []]
        if len(paths) < least or (most is not None and len(paths) > most):
            wanted = f"{least}" if least == most else f"{least} or more"
            raise StudioError(f"{len(paths)} files are chosen; choose {wanted} above.")
        return paths

    async def _run(self, *arguments: str) -> Any:
        """The verb, while which a note can cancel it."""
        task = asyncio.ensure_future(studio().verbs.run(*arguments))
        with self._answer:
            note = ui.notification(f"{arguments[0]} ...", spinner=True, timeout=None, close_button="Cancel")
        note.on_dismiss(task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            raise StudioError(f"{arguments[0]} was cancelled; nothing was written.") from None
        finally:
            note.dismiss()

    async def _inspect(self) -> None:
        paths = self._chosen(least=1)
        self._answer.clear()
        for path in paths:
            try:
                found = await self._run("inspect", "--", str(path))
            except StudioError as error:
                with self._answer:
                    fault_box(f"{path.name}: {error}")
                continue
            with self._answer:
                show_facts(found)
                MetadataEditor(path)

    async def _compare(self) -> None:
        one, other = self._chosen(least=2, most=2)
        found = await self._run("compare", "--", str(one), str(other))
        self._answer.clear()
        with self._answer:
            show_compared(found, tuple(map(studio().folders.shortened, (one, other))))

    def _combining(self) -> None:
        with ui.element("section").classes("panel"):
            heading("Combine", level=2)
            names = {name: f"{name}: {what}" for name, what in _METHODS.items()}
            self._method = ui.select(names, value="concat", label="Method").props("outlined dense")
            self._strengths = ui.input("Strengths, in their order", value="1, 1").props("outlined dense")
            self._rank = ui.number("Highest rank (svd, ties, dare)", min=1, precision=0).props(
                "outlined dense"
            )
            self._button("Combine those chosen", self._combine)

    async def _combine(self) -> None:
        paths = self._chosen(least=2)
        given = [one.strip() for one in str(self._strengths.value or "").split(",") if one.strip()]
        strengths = [*given, *["1"] * len(paths)]
        terms = [f"{path}:{strength}" for path, strength in zip(paths, strengths, strict=False)]
        out = free_copy(studio().folders.project / "combined.safetensors", "of_several")
        rank = [f"--rank={int(self._rank.value)}"] if self._rank.value else []
        made = await self._run(
            "combine", f"--method={self._method.value}", *rank, f"--out={out}", "--", *terms
        )
        self._made(out, made)

    def _resizing(self) -> None:
        with ui.element("section").classes("panel"):
            heading("Make smaller", level=2)
            self._energy = ui.number("Share of each layer that stays", value=0.95, min=0.1, max=1, step=0.01)
            self._energy.props("outlined dense")
            self._button("Resize the one chosen", self._resize)

    async def _resize(self) -> None:
        (path,) = self._chosen(least=1, most=1)
        out = free_copy(path, "smaller")
        made = await self._run("resize", f"--energy={self._energy.value}", f"--out={out}", "--", str(path))
        self._made(out, made)

    def _converting(self) -> None:
        with ui.element("section").classes("panel"):
            heading("Convert", level=2)
            self._spelling = ui.select(list(_SPELLINGS), value="kohya", label="To").props("outlined dense")
            self._button("Convert the one chosen", self._convert)

    async def _convert(self) -> None:
        (path,) = self._chosen(least=1, most=1)
        out = free_copy(path, str(self._spelling.value))
        made = await self._run("convert", f"--to={self._spelling.value}", f"--out={out}", "--", str(path))
        self._made(out, made)

    def _made(self, out: Path, report: Any) -> None:
        self._choice.set_options(known_files(), value=self._choice.value)
        self._answer.clear()
        with self._answer, ui.element("section").classes("panel"):
            heading(f"Written: {studio().folders.shortened(out)}", level=2)
            facts([("size", file_size(out.stat().st_size)), *_plain(report)])


def _plain(report: Any) -> list[tuple[str, str]]:
    """What a tool says in numbers and words; tables of layers are left out."""
    if not isinstance(report, dict):
        return []
    told = ((key, value) for key, value in report.items() if key not in ("file", "bytes"))
    kept = ((in_words(key), value) for key, value in told if isinstance(value, str | int | float))
    return [(key, f"{value:.4g}" if type(value) is float else str(value)) for key, value in kept]


def show_facts(found: Mapping[str, Any]) -> None:
    """What `inspect` says of a file."""
    rows = [
        ("kind", str(found["kind"])),
        ("base", str(found["family"])),
        ("size", file_size(found["num_bytes"])),
        ("rank", _span(found["ranks"])),
        ("alpha", _span(found["alphas"])),
        ("numbers", ", ".join(found["dtypes"])),
        ("layers", ", ".join(f"{count} in {part}" for part, count in found["layers"].items())),
        ("trigger", ", ".join(found["triggers"])),
        *(("note", str(one)) for one in found["notes"]),
    ]
    with ui.element("section").classes("panel"):
        with ui.element("div").classes("row spread"):
            heading(str(found["file"]), level=2)
            pill(str(found["kind"]).split("+")[0])
        with ui.element("div").classes("columns"):
            facts(row for row in rows if row[1])
            facts((str(one["ui"]), verdict_in_words(one)) for one in found["uis"])
        norms = {block: norm for block, norm in found["norms"].items() if norm is not None}
        if norms:
            heading("How much it changes, block by block", level=3)
            norm_bars(norms)


def _span(values: list[float]) -> str:
    return "" if not values else " to ".join(f"{one:g}" for one in dict.fromkeys((values[0], values[-1])))


def norm_bars(norms: Mapping[str, float]) -> None:
    """A bar a block, as long as its change is large."""
    most = max(norms.values()) or 1.0
    with ui.element("div").classes("norms"):
        for block, norm in norms.items():
            facts_row(block, norm, norm / most)


def facts_row(title: str, value: float, share: float) -> None:
    """A title, a bar and a number."""
    text(title, tag="span").classes("small")
    with ui.element("div").classes("bar").props("aria-hidden=true"):
        ui.element("div").style(f"width: {100 * share:.1f}%")
    text(f"{value:.3g}", tag="span").classes("small numbers")


def show_compared(found: Mapping[str, Any], files: Sequence[str]) -> None:
    """What `compare` says of two files; `files`: their paths, as names of runs' files may be the same."""
    with ui.element("section").classes("panel"):
        heading(f"Verdict: {found['verdict']}", level=2)
        rows = [
            ("files", " and ".join(files)),
            ("norms", ", ".join(f"{one:.3g}" for one in found["norms"])),
            ("cosine", f"{found['cosine']:.3f}"),
            ("shared layers", str(len(found["shared"]))),
            ("alone", " and ".join(map(str, found["alone"]))),
            ("words of both", ", ".join(map(str, found["clashing_words"]))),
            *(("why", str(one)) for one in found["reasons"]),
            *(("note", str(one)) for one in found["notes"]),
        ]
        facts(row for row in rows if row[1])

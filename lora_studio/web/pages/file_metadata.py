"""What a LoRA file says of itself, changed without touching what was learned."""

from __future__ import annotations

from pathlib import Path

from nicegui import ui

from lora_studio.errors import StudioError
from lora_studio.metadata.edit import edit, parse_changes
from lora_studio.tensor_file.header import read_header
from lora_studio.text import shown
from lora_studio.web.pages.frame import fault_box, heading, text, told
from lora_studio.web.pages.parts import facts
from lora_studio.web.studio import studio

_OFFERED = {
    "modelspec.title": "Title",
    "modelspec.author": "Author",
    "modelspec.description": "Description",
    "modelspec.license": "Licence",
    "modelspec.trigger_phrase": "Trigger words",
    "modelspec.tags": "Tags",
}
_LONGEST = 300


class MetadataEditor:
    """The fields that people read; a changed copy is written beside the file, which stays as it is."""

    def __init__(self, path: Path) -> None:
        with ui.element("section").classes("panel"):
            heading(f"What {shown(path.name)} says of itself", level=2)
            try:
                self._path = studio().folders.resolve(path)
                self._before = read_header(self._path).metadata
            except StudioError as error:
                fault_box(str(error))
                return
            with ui.element("div").classes("cards"):
                self._fields = {
                    key: ui.input(title, value=shown(self._before.get(key, ""))).props("outlined dense")
                    for key, title in _OFFERED.items()
                }
            button = ui.button("Write a copy with these", on_click=told(self._write))
            button.props("flat no-caps").classes("quiet self-start")
            with ui.expansion("Everything that it says").classes("full"):
                rest = sorted(self._before.items())
                facts((shown(key, limit=80), shown(value, limit=_LONGEST)) for key, value in rest)
            text("The file itself is not changed.").classes("soft small")

    def _write(self) -> None:
        changed = {
            key: str(field.value or "")
            for key, field in self._fields.items()
            if str(field.value or "") != shown(self._before.get(key, ""))
        }
        if not changed:
            raise StudioError("nothing was changed; write something else into a field first.")
        target = free_copy(self._path, "described")
        wanted = parse_changes(tuple(f"{key}={value}" for key, value in changed.items()))
        edit(self._path, target, wanted, strip=False)
        ui.notify(f"Written: {studio().folders.shortened(target)}")


def free_copy(path: Path, ending: str) -> Path:
    """A name beside the file that nothing has yet."""
    number, found = 2, path.with_name(f"{path.stem}_{ending}{path.suffix}")
    while found.exists() or found.is_symlink():
        found, number = path.with_name(f"{path.stem}_{ending}_{number}{path.suffix}"), number + 1
    return found

"""Where images are dropped or chosen, files or a whole folder: they are copied into the project."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from nicegui import ui

from lora_studio.data.images import METADATA_NAMES
from lora_studio.text import plural, shown
from lora_studio.web.dataset.dropping import DropFolder, new_folder
from lora_studio.web.dataset.opened import opened
from lora_studio.web.pages.frame import Words, text
from lora_studio.web.studio import studio

_MOST_REFUSED = 50
_SEND = """async (e) => {
  const within = async (entry) => entry.isFile
    ? [await new Promise((done, fail) => entry.file(done, fail))]
    : (await Promise.all(await new Promise((done) => {
        const reader = entry.createReader(), found = [];
        const more = () => reader.readEntries((some) => {
          found.push(...some);
          if (some.length) more(); else done(found.map(within));
        });
        more();
      }))).flat();
  const entries = [...(e.dataTransfer?.items || [])].map((one) => one.webkitGetAsEntry?.()).filter(Boolean);
  let files = [...(e.dataTransfer?.files || e.target.files || [])];
  if (entries.length) files = (await Promise.all(entries.map(within))).flat();
  files = files.filter((one) => !one.name.startsWith("."));
  let done = 0;
  for (const file of files) {
    let said = {};
    try {
      const place = "/api/uploads/images/DROP/" + encodeURIComponent(file.name);
      said = await (await fetch(place, {method: "PUT", body: file})).json();
    } catch (error) { said = {error: file.name + " was not sent: the page cannot be reached."}; }
    emitEvent("images_dropped", {done: ++done, total: files.length, error: said.error || ""});
  }
}"""


class DropZone:
    """Tells the folder when all files of a drop are there; what was refused is listed with its reason."""

    def __init__(self, on_done: Callable[[Path], Awaitable[None]]) -> None:
        self._on_done, self._refused = on_done, list[str]()
        self._drop = DropFolder(new_folder(studio().folders.project, "dropped"))
        send = _SEND.replace("DROP", opened.new_drop(self._drop))
        with ui.element("label").classes("image-drop") as zone:
            ui.icon("add_photo_alternate").props("aria-hidden=true")
            text("Or drop images, captions and masks here, or choose them: they are copied", tag="span")
            picked = ui.element("input").props("type=file multiple")
            picked._props["accept"] = ",".join(["image/*", ".txt", ".caption", *METADATA_NAMES])
            picked._props["aria-label"] = "Images to copy into the project"
            picked.on("change", js_handler=send)
        zone.on("dragover.prevent", js_handler="() => {}")
        zone.on("drop.prevent", js_handler=send)
        self.said = Words("p", "")
        self.said.classes("small soft").props("aria-live=polite")
        self.faults = ui.element("div").classes("stack tight small refused")
        ui.on("images_dropped", lambda event: self._sent(event.args))

    async def _sent(self, told: dict[str, Any]) -> None:
        done, total = int(told.get("done", 0)), int(told.get("total", 0))
        self.said.say(f"{done} of {plural(total, 'file')} sent, {len(self._drop.taken)} kept")
        if (why := str(told.get("error", ""))) and len(self._refused) < _MOST_REFUSED:
            self._refused.append(why)
            with self.faults:
                text(shown(why, limit=300)).classes("lost")
        if done == total and self._drop.taken:
            await self._on_done(self._drop.folder)

"""A run's checkpoints: pinned and exported."""

from __future__ import annotations

from collections.abc import Sequence

from nicegui import ui

from lora_studio.errors import StudioError
from lora_studio.runs import PIN, ReadOnlyRun, Run
from lora_studio.text import shown
from lora_studio.web.asked import AskedVerb, verb_job
from lora_studio.web.live import RunNow
from lora_studio.web.pages.frame import heading, text, told
from lora_studio.web.studio import studio

TARGETS = ("kohya", "diffusers", "comfy", "sd_scripts", "native", "merged", "checkpoint")


class CheckpointTable:
    """A row for each, the newest first."""

    def __init__(self, run: RunNow) -> None:
        self._run = run
        self._shown: list[int] | None = None
        with ui.element("section").classes("panel"):
            heading("Checkpoints", level=2)
            self._target = ui.select(list(TARGETS), value="kohya", label="Export as").props("outlined dense")
            self._target.classes("full")
            self._box = ui.element("div").classes("stack tight")

    def look(self, steps: Sequence[int]) -> None:
        """Drawn again when one was added or removed."""
        if [*steps] == self._shown:
            return
        self._shown = [*steps]
        self._target.set_visibility(bool(steps))
        self._box.clear()
        with self._box:
            if not steps:
                text("None is written yet.").classes("soft")
            for step in reversed(steps):
                self._row(step)

    def _row(self, step: int) -> None:
        with ui.element("div").classes("row spread line"):
            text(f"step {step}", tag="span").classes("numbers")
            with ui.element("div").classes("row"):
                pinned = (ReadOnlyRun(self._run.folder).checkpoint_of(step) / PIN).exists()
                pin = ui.checkbox("Keep", value=pinned)
                pin._props["aria-label"] = f"Keep the checkpoint of step {step}"
                pin.on_value_change(told(lambda: pin_checkpoint(self._run, step, pinned=bool(pin.value))))
                button = ui.button("Export", on_click=told(lambda: self._export(step)))
                button.props("flat dense no-caps").classes("quiet small-button")
                button._props["aria-label"] = f"Export the checkpoint of step {step}"

    def _export(self, step: int) -> None:
        options = {"to": str(self._target.value), "checkpoint": str(step)}
        job = studio().add(verb_job(AskedVerb("export", self._run.folder, options)))
        ui.notify(f"Job {job.id} writes and verifies {shown(str(self._target.value))} of step {step}.")


def pin_checkpoint(run: RunNow, step: int, *, pinned: bool) -> None:
    """A run never removes a pinned one. Raises StudioError where the folder cannot be written."""
    folder = studio().folders.resolve(
        f"checkpoints/{Run(run.folder).checkpoint_of(step).name}", within=run.folder
    )
    try:
        if pinned:
            (folder / PIN).touch()
        else:
            (folder / PIN).unlink(missing_ok=True)
    except OSError as error:
        raise StudioError(f"{shown(str(folder))} cannot be written to ({error.strerror or error}).") from None

"""What came out: a run's evaluation, verification and files, and runs side by side."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from nicegui import ui

from lora_studio.errors import StudioError
from lora_studio.evaluate.report.words import measure_words
from lora_studio.evaluate.saved import RESULT, evaluation_folder
from lora_studio.runs import BEST, SUMMARY
from lora_studio.text import shown
from lora_studio.tools.compare_runs import ComparedRuns, compare_runs, comparison_plot
from lora_studio.web.api.runs import read_facts
from lora_studio.web.asked import AskedVerb, verb_job
from lora_studio.web.live import RunNow
from lora_studio.web.pages.file_metadata import MetadataEditor
from lora_studio.web.pages.frame import fault_box, frame, heading, text, told, told_later
from lora_studio.web.pages.parts import api_address, facts, pill, results_address, run_address, table
from lora_studio.web.studio import studio

_GRIDS = {"Strengths": "grid/strengths.png", "Checkpoints": "grid/checkpoints.png"}
_NONE = "No run has ended yet. Its evaluation, files and verification will be here."


@ui.page("/results")
def results() -> None:
    """Runs that have ended, to open one or to compare several."""
    with frame("Results", here="/results"):
        heading("Results")
        ended = [one for one in studio().live.runs() if one.state in ("finished", "done")]
        if not ended:
            with ui.element("div").classes("empty"):
                text(_NONE)
            return
        RunComparison(ended)


class RunComparison:
    """The list of runs, and below it what those that are chosen have in common and not."""

    def __init__(self, runs: list[RunNow]) -> None:
        self._chosen: dict[str, ui.checkbox] = {}
        with ui.element("section").classes("panel"):
            for run in runs:
                self._row(run)
            with ui.element("div").classes("row"):
                button = ui.button("Compare those chosen", on_click=told_later(self._compare))
                button.props("flat no-caps").classes("quiet")
                text("Measures with intervals, recipes' differences, and fidelity against drift.").classes(
                    "soft small"
                )
        self._box = ui.element("div").classes("stack").props("aria-live=polite")

    def _row(self, run: RunNow) -> None:
        with ui.element("div").classes("row spread line"):
            with ui.element("div").classes("row"):
                box = ui.checkbox()
                box._props["aria-label"] = f"Compare {run.name}"
                self._chosen[run.id] = box
                ui.link(run.name, results_address(run.id))
            with ui.element("div").classes("row"):
                if has_evaluation(run.folder):
                    pill("evaluated").classes("good")
                text(f"{run.step} steps", tag="span").classes("soft small numbers")

    async def _compare(self) -> None:
        live = studio().live
        folders = [live.run(name).folder for name, box in self._chosen.items() if box.value]
        compared = await asyncio.to_thread(compare_runs, folders)
        try:
            plot = await asyncio.to_thread(comparison_plot, compared)
        except StudioError:
            plot = b""  # no run has both measures
        self._box.clear()
        with self._box:
            show_comparison(compared, plot, folders)


def show_comparison(compared: ComparedRuns, plot: bytes, folders: list[Path]) -> None:
    """The table of `runs compare`, its plot, and the same prompts in columns."""
    titles = ["run", "verdict", *(measure_words(name).title for name in compared.shown), *compared.options]
    with ui.element("section").classes("panel"):
        heading("Side by side, the best first", level=2)
        table(titles, compared.rows)
        for note in compared.notes:
            text(note).classes("soft small")
        if plot:
            image = ui.element("img").classes("plot")
            image._props["src"] = f"data:image/png;base64,{base64.b64encode(plot).decode()}"
            image._props["alt"] = "fidelity against drift; the table has the same figures"
    with ui.element("section").classes("panel"):
        heading("The same prompts and seeds", level=2)
        with ui.element("div").classes("columns"):
            for run in studio().live.runs():
                if run.folder in folders and (run.folder / "evaluation" / "evaluation.png").is_file():
                    with ui.element("figure").classes("pair"):
                        sheet_image(run, "evaluation/evaluation.png", f"evaluation of {run.name}")
                        text(run.name, tag="figcaption")


def sheet_image(run: RunNow, path: str, words: str) -> None:
    """An image of the run's folder, that opens in its own size."""
    address = api_address(run.id, "files", path)
    with ui.link(target=address, new_tab=True).classes("sheet"):
        image = ui.element("img").props("loading=lazy")
        image._props["src"], image._props["alt"] = address, shown(words)


def has_evaluation(folder: Path) -> bool:
    return (evaluation_folder(folder) / RESULT).is_file()


@ui.page("/results/{run}")
def result_page(run: str) -> None:
    """One run's."""
    with frame(f"Results of {run}", here="/results"):
        try:
            now = studio().live.run(run)
        except StudioError as error:
            heading("Results")
            fault_box(str(error))
            return
        with ui.element("div").classes("row spread"):
            heading(now.name)
            ui.link("The run", run_address(now.id))
        with ui.element("div").classes("columns main-aside"):
            with ui.element("div").classes("stack"):
                evaluation_panel(now)
                grids_panel(now)
            with ui.element("div").classes("stack"):
                choice_panel(now)
                verify_panel(read_facts(now.folder, "verify.json"))
                actions_panel(now)
        metadata_panel(now.folder)


Options = Mapping[str, str | float | int | bool]


def queue_button(title: str, run: RunNow, verb: str, options: Callable[[], Options] = dict) -> None:
    """Queues a verb about the run, with the options as they are when it is clicked."""

    def add() -> None:
        job = studio().add(verb_job(AskedVerb(verb, run.folder, options())))
        ui.notify(f"Job {job.id}: {verb}. Its progress is on the page of runs.")

    ui.button(title, on_click=told(add)).props("flat no-caps").classes("quiet self-start")


def evaluation_panel(run: RunNow) -> None:
    """The report, as `evaluate` has written it, or the way to one."""
    with ui.element("section").classes("panel"):
        heading("Evaluation", level=2)
        if not has_evaluation(run.folder):
            text("What it has learned and what that cost was not measured yet; that takes minutes.")
            count = ui.number("Prompts of each of the four groups; empty: as usual", min=1, precision=0)
            count.props("outlined dense")

            def given() -> Options:
                return {"count": int(count.value)} if count.value else {}

            queue_button("Evaluate", run, "evaluate", given)
            return
        address = api_address(run.id, "files", "evaluation/evaluation.html")
        ui.link("Open the report", address, new_tab=True)
        report = ui.element("iframe").classes("report").props("loading=lazy title=Evaluation")
        report._props["sandbox"], report._props["src"] = "allow-popups", address


def grids_panel(run: RunNow) -> None:
    """Sheets of strengths and checkpoints, and those that were asked for."""
    drawn = {title: path for title, path in _GRIDS.items() if (run.folder / path).is_file()}
    samples = sorted(one.relative_to(run.folder).as_posix() for one in run.folder.glob("samples/**/*.png"))
    sheets = [one for one in samples if "sheet" in one or "grid" in one] or samples[:12]
    with ui.element("section").classes("panel"):
        heading("Strengths and checkpoints", level=2)
        for title, path in drawn.items():
            heading(title, level=3)
            sheet_image(run, path, f"{title} in columns, prompts in rows")
        for path in sheets:
            sheet_image(run, path, path)
        if not drawn and not sheets:
            text("No sheet was drawn yet.").classes("soft")
        grid = {"grid": "strengths x checkpoints"}
        queue_button("Draw strengths by checkpoints", run, "sample", grid.copy)


def choice_panel(run: RunNow) -> None:
    """Which checkpoint is best, and why."""
    best: Mapping[str, Any] = read_facts(run.folder, BEST)
    summary = read_facts(run.folder, SUMMARY)
    with ui.element("section").classes("panel"):
        heading("Checkpoint", level=2)
        if best:
            facts([("best", f"step {best.get('step')}"), ("why", str(best.get("why", "")))])
        elif isinstance(taken := summary.get("checkpoint"), dict):
            facts([("in the file", f"step {taken.get('step')}"), ("why", str(taken.get("why", "")))])
        queue_button("Choose by measuring", run, "choose")


def verify_panel(report: Mapping[str, Any]) -> None:
    """Whether the file is what was trained, and how each UI loads it."""
    with ui.element("section").classes("panel"):
        heading("Verification", level=2)
        if not report:
            text("There is none: the run has not ended yet.").classes("soft")
            return
        show_verdicts(report)


def show_verdicts(report: Mapping[str, Any]) -> None:
    """Of a report of `verify`."""
    faults = report.get("faults") or []
    if faults:
        fault_box("\n".join(map(str, faults)))
    else:
        pill("valid").classes("good self-start")
    facts((str(one.get("ui")), verdict_in_words(one)) for one in report.get("uis") or [])


def verdict_in_words(verdict: Mapping[str, Any]) -> str:
    """How a UI loads the file, and why not completely."""
    why = "; ".join(f"{one['what']}: {one['consequence']}" for one in verdict.get("reasons") or [])
    return f"{verdict.get('loads')}{f' ({why})' if why else ''}"


def actions_panel(run: RunNow) -> None:
    """Files for UIs, in other forms or with what stands beside them."""
    with ui.element("section").classes("panel"):
        heading("Files for UIs", level=2)
        for title, target in (("Export for diffusers", "diffusers"), ("Export for ComfyUI", "comfy")):
            queue_button(title, run, "export", partial(dict, to=target, force=True))

        async def sidecars() -> None:
            made = await studio().verbs.run("sidecars", "--force", "--", str(run.folder))
            ui.notify("\n".join(f"written: {shown(one)}" for one in made["written"]), multi_line=True)

        button = ui.button("Write sidecars", on_click=told_later(sidecars))
        button.props("flat no-caps").classes("quiet self-start")
        PushForm(run)


def metadata_panel(folder: Path) -> None:
    """What one of the run's files says of itself, its exports among them; which, is chosen."""
    files = [path for where in ("*", "exports/**/*") for path in sorted(folder.glob(f"{where}.safetensors"))]
    with ui.element("div").classes("stack"):
        if len(files) > 1:
            names = {number: shown(str(path.relative_to(folder))) for number, path in enumerate(files)}
            ui.select(names, value=0, label="File", on_change=lambda chosen: show(chosen.value)).props(
                "outlined dense"
            )
        box = ui.element("div")

    def show(number: int) -> None:
        box.clear()
        with box:
            MetadataEditor(files[number])

    if files:
        show(0)


class PushForm:
    """Hands the run's file over to the hub; the token is the environment's, and is never shown."""

    def __init__(self, run: RunNow) -> None:
        self._run = run
        with ui.element("div").classes("stack tight"):
            self._repo = ui.input("Push to the hub: NAME/REPOSITORY").props("outlined dense").classes("full")
            button = ui.button("Push", on_click=told_later(self._push))
            button.props("flat no-caps").classes("quiet self-start")

    async def _push(self) -> None:
        repository = str(self._repo.value or "").strip()
        if not repository:
            raise StudioError("the repository is empty; write NAME/REPOSITORY.")
        with ui.notification("Pushing ...", spinner=True, timeout=None) as note:
            try:
                await studio().verbs.run("push", "--", str(self._run.folder), repository)
            finally:
                note.dismiss()
        ui.notify("Pushed.")

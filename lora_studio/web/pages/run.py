"""A run while it trains, and afterwards: its course, its previews and what can be done with it."""

from __future__ import annotations

from nicegui import background_tasks, ui

from lora_studio.errors import StudioError
from lora_studio.jobs import AT_WORK, MAY_RESUME, Job
from lora_studio.text import shown
from lora_studio.web.asked import AskedVerb, verb_job
from lora_studio.web.feed import RunSeen
from lora_studio.web.live import RunNow
from lora_studio.web.pages.checkpoints import CheckpointTable
from lora_studio.web.pages.course import CourseChart
from lora_studio.web.pages.frame import Words, fault_box, frame, heading, text, told
from lora_studio.web.pages.parts import Bar, api_address, pill, results_address
from lora_studio.web.pages.previews import PreviewPrompts, PreviewTimeline
from lora_studio.web.studio import studio


@ui.page("/run/{run}")
def run_page(run: str) -> None:
    """Everything about one run, kept up to date."""
    with frame(run, here="/"):
        try:
            now = studio().feed(run).now()
        except StudioError as error:
            heading("Run")
            fault_box(str(error))
            ui.link("All runs", "/")
            return
        RunView(now)


class RunView:
    """The page's parts, each of which shows what is new of what was seen."""

    def __init__(self, seen: RunSeen) -> None:
        run = seen.run
        self._id, self._state = run.id, ""
        with ui.element("div").classes("row spread"):
            with ui.element("div").classes("row"):
                heading(run.name)
                self._pill = ui.element("div").props("role=status")
            self._buttons = ui.element("div").classes("row")
        self._fault = ui.element("div").classes("trouble")
        with ui.element("section").classes("panel"):
            self._bar = Bar("steps done")
            self._numbers = LiveWords().classes("row spread numbers")
            self._gpu = LiveWords().classes("soft numbers")
        with ui.element("div").classes("columns main-aside"):
            with ui.element("div").classes("stack"):
                self._previews = PreviewTimeline(run)
                self._course = CourseChart(run.folder)
            with ui.element("div").classes("stack"):
                self._checkpoints = CheckpointTable(run)
                self._prompts = PreviewPrompts(run)
                PromptForm(run)
                files_panel(run)
        self._log = LogPanel()
        self.show(seen)
        following = background_tasks.create(self._follow())
        ui.context.client.on_delete(following.cancel)

    async def _follow(self) -> None:
        async for seen in studio().feed(self._id).changes():
            self.show(seen)

    def show(self, seen: RunSeen) -> None:
        """What is new of it."""
        run = seen.run
        if run.state != self._state:
            self._state = run.state
            self._show_state(run)
        self._bar.share(run.step / run.steps if run.steps else 0.0)
        step = f"step {run.step} of {run.steps}" if run.steps else "preparing: base, images, caches"
        self._numbers.say(step, seen.numbers, run.time_left)
        self._gpu.say(f"GPU memory: {seen.gpu}")
        self._gpu.set_visibility(bool(seen.gpu))
        self._course.show(seen.course, at_work=run.at_work)
        self._previews.look(run, seen.sheets)
        self._checkpoints.look(seen.checkpoints)
        self._prompts.look(run)
        self._log.show(run.job, seen.log)

    def _show_state(self, run: RunNow) -> None:
        self._pill.clear()
        with self._pill:
            pill(run.state)
        self._buttons.clear()
        with self._buttons:
            run_buttons(run)
        self._fault.clear()
        if run.reason and run.state in MAY_RESUME:
            with self._fault:
                log = f"/api/jobs/{run.job}/log" if run.job is not None else ""
                fault_box(run.reason, log=log) if run.state != "stopped" else text(run.reason)


class LiveWords(ui.element, component="live_words.js"):
    """Texts in a row, of which any may change several times a second."""

    def say(self, *words: str) -> None:
        """These instead."""
        harmless = [*map(shown, words)]
        if harmless != self._props.get("words"):
            with self._props.suspend_updates():
                self._props["words"] = harmless  # of a page that is not yet open
            self.run_method("say", harmless)


def run_buttons(run: RunNow) -> None:
    """What can be done with a run in its state."""
    there = studio()
    job = next((one for one in there.live.jobs() if one.id == run.job), None)
    if job is not None and job.state in ("queued", *AT_WORK):
        ui.button("Stop", on_click=told(lambda: there.stop(job.id))).props("flat no-caps").classes("quiet")
        both = told(lambda: stop_and_export(run, job))
        ui.button("Stop and export", on_click=both).props("flat no-caps").classes("quiet")
    elif run.state in MAY_RESUME:
        ui.button("Resume", on_click=told(lambda: resume(run, job))).props("flat no-caps").classes("primary")
    elif run.state == "training":
        text("It was started in a terminal; Ctrl-C there stops it.").classes("soft small")
    if run.state == "finished":
        ui.link("Results", results_address(run.id)).classes("action")


def stop_and_export(run: RunNow, job: Job) -> None:
    """Its checkpoint becomes a file once it has ended."""
    there = studio()
    there.stop(job.id)
    there.add(verb_job(AskedVerb("export", run.folder, {})))
    ui.notify("It stops behind a checkpoint, which is exported then.")


def resume(run: RunNow, job: Job | None) -> None:
    """By its job; one that was started in a terminal gets one."""
    there = studio()
    if job is not None and job.state in MAY_RESUME:
        there.resume(job.id)
    else:
        there.add(Job(("train", str(run.folder)), str(there.folders.project), str(run.folder)))


class LogPanel:
    """The end of what the run's job has printed."""

    def __init__(self) -> None:
        with ui.element("section").classes("panel") as self._panel:
            with ui.element("div").classes("row spread"):
                heading("Log, with the plan at its beginning", level=2)
                self._link = ui.link("All of it", "#", new_tab=True).classes("small")
            self._text = Words("pre", "")
            self._text.classes("log").props('tabindex=0 role=region aria-label="Log"')
        self._shown = ""
        self._panel.set_visibility(False)

    def show(self, job: int | None, words: str) -> None:
        """Its last lines."""
        if job is not None and words != self._shown:
            self._shown = words
            self._panel.set_visibility(True)
            self._link.props(f"href=/api/jobs/{job}/log")
            self._text.say(words)


class PromptForm:
    """Other prompts than the recipe's, drawn with the newest checkpoint as soon as the device is free."""

    def __init__(self, run: RunNow) -> None:
        self._run = run
        with ui.element("section").classes("panel"):
            heading("Try a prompt", level=2)
            self._prompt = ui.input("Prompt").props("outlined dense").classes("full")
            self._strengths = ui.input("Strengths", value="0, 0.6, 1").props("outlined dense").classes("full")
            draw = ui.button("Draw", on_click=told(self._draw)).props("flat no-caps")
            draw.classes("quiet self-start")

    def _draw(self) -> None:
        if not str(self._prompt.value or "").strip():
            raise StudioError("the prompt is empty; write what is to be drawn.")
        options = {"prompt": str(self._prompt.value), "strength": str(self._strengths.value or "1")}
        job = studio().add(verb_job(AskedVerb("sample", self._run.folder, options)))
        ui.notify(f"Job {job.id} draws it; the sheet will lie in samples of the run.")


def files_panel(run: RunNow) -> None:
    """What lies in the run's folder, to look at or to keep."""
    named = {
        "Recipe as run": "recipe.toml",
        "Images and captions used": "manifest.jsonl",
        "Every step's numbers": "metrics.jsonl",
        "Summary": "summary.json",
        "Verification": "verify.json",
    }
    with ui.element("section").classes("panel"):
        heading("Files", level=2)
        with ui.element("ul").classes("plain"):
            for title, name in named.items():
                if (run.folder / name).is_file():
                    with ui.element("li"):
                        ui.link(title, api_address(run.id, "files", name), new_tab=True)
            for path in sorted(run.folder.glob("*.safetensors")):
                with ui.element("li"):
                    link = ui.link(shown(path.name), api_address(run.id, "files", path.name))
                    link._props["download"] = shown(path.name)
        text(str(run.folder)).classes("path soft")

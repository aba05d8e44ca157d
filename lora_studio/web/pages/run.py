"""A run while it trains, and afterwards: its course, its previews and what can be done with it."""

from __future__ import annotations

from nicegui import ui

from lora_studio.errors import StudioError
from lora_studio.jobs import AT_WORK, MAY_RESUME, Job, last_lines
from lora_studio.text import shown
from lora_studio.web.asked import AskedVerb, verb_job
from lora_studio.web.live import RunNow
from lora_studio.web.pages.checkpoints import CheckpointTable
from lora_studio.web.pages.course import CourseChart
from lora_studio.web.pages.frame import Words, fault_box, frame, heading, text, told
from lora_studio.web.pages.parts import Bar, api_address, pill, results_address
from lora_studio.web.pages.previews import PreviewTimeline
from lora_studio.web.studio import studio

_SECONDS = 0.5
_LOG_BYTES, _LOG_LINES = 40_000, 200


@ui.page("/run/{run}")
def run_page(run: str) -> None:
    """Everything about one run, kept up to date."""
    with frame(run, here="/"):
        try:
            now = studio().live.run(run)
        except StudioError as error:
            heading("Run")
            fault_box(str(error))
            ui.link("All runs", "/")
            return
        RunView(now)


class RunView:
    """The page's parts, which look at the same run."""

    def __init__(self, run: RunNow) -> None:
        self._id, self._state = run.id, ""
        with ui.element("div").classes("row spread"):
            with ui.element("div").classes("row"):
                heading(run.name)
                self._pill = ui.element("div").props("role=status")
            self._buttons = ui.element("div").classes("row")
        self._fault = ui.element("div").classes("trouble")
        with ui.element("section").classes("panel"):
            self._bar = Bar("steps done")
            with ui.element("div").classes("row spread numbers"):
                self._steps, self._numbers, self._left = (Words("span", "") for _ in range(3))
                self._numbers.classes("soft")
        with ui.element("div").classes("columns main-aside"):
            with ui.element("div").classes("stack"):
                self._previews = PreviewTimeline(run)
                self._course = CourseChart(run.folder)
            with ui.element("div").classes("stack"):
                self._checkpoints = CheckpointTable(run)
                PromptForm(run)
                files_panel(run)
        self._log = LogPanel()
        self.look()
        ui.timer(_SECONDS, self.look)

    def look(self) -> None:
        """Show what is new."""
        try:
            run = studio().live.run(self._id)
        except StudioError:
            return
        if run.state != self._state:
            self._state = run.state
            self._show_state(run)
        self._bar.share(run.step / run.steps if run.steps else 0.0)
        self._steps.say(f"step {run.step} of {run.steps}" if run.steps else "preparing: base, images, caches")
        self._left.say(run.time_left)
        self._numbers.say(_numbers(run))
        self._course.look()
        self._previews.look(run)
        self._checkpoints.look()
        self._log.look(run.job)

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


def _numbers(run: RunNow) -> str:
    rows = studio().live.rows(run.folder).rows
    if not rows:
        return ""
    last = rows[-1]
    told_of = {"loss": last.get("loss"), "learning rate": last.get("learning_rate")}
    words = [f"{name} {value:.4g}" for name, value in told_of.items() if isinstance(value, int | float)]
    seconds = last.get("seconds")
    return ", ".join(words + ([f"{seconds:.2f} s a step"] if isinstance(seconds, int | float) else []))


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
        self._shown: tuple[int, float] = (0, 0.0)
        with ui.element("section").classes("panel") as self._panel:
            with ui.element("div").classes("row spread"):
                heading("Log, with the plan at its beginning", level=2)
                self._link = ui.link("All of it", "#", new_tab=True).classes("small")
            self._text = Words("pre", "")
            self._text.classes("log").props('tabindex=0 role=region aria-label="Log"')
        self._panel.set_visibility(False)

    def look(self, job: int | None) -> None:
        """Read again if it has grown."""
        if job is None:
            return
        path = studio().queue.log(job)
        try:
            now = (job, path.stat().st_mtime)
        except OSError:
            return
        if now != self._shown:
            self._shown = now
            self._panel.set_visibility(True)
            self._link.props(f"href=/api/jobs/{job}/log")
            self._text.say("\n".join(last_lines(path, _LOG_BYTES)[-_LOG_LINES:]))


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

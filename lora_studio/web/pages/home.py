"""The first page: all runs and the queue, as they are now."""

from __future__ import annotations

from nicegui import ui

from lora_studio.jobs import AT_WORK, MAY_RESUME, Job
from lora_studio.text import command_of, shown
from lora_studio.web.live import RunNow
from lora_studio.web.pages.frame import Words, frame, heading, text, told
from lora_studio.web.pages.parts import Bar, api_address, pill, run_address, sparkline
from lora_studio.web.studio import studio

_SECONDS = 1.0
_NO_RUNS = (
    "No runs yet. A run begins with a recipe: make one here, or in a terminal, and it shows up on this page."
)


@ui.page("/")
def home() -> None:
    """Runs with their state, loss and newest preview; below them the queue."""
    with frame("Runs", here="/"):
        with ui.element("div").classes("row spread"):
            heading("Runs")
            ui.link("New training", "/new").classes("action")
        RunCards()
        QueueTable()


class RunCards:
    """A card for each run; those at work come first."""

    def __init__(self) -> None:
        self._cards: dict[str, RunCard] = {}
        self._box = ui.element("div").classes("cards")
        self._empty = ui.element("div").classes("empty")
        with self._empty:
            text(_NO_RUNS)
            text(command_of("start", "FOLDER"), tag="code")
        self.look()
        ui.timer(_SECONDS, self.look)

    def look(self) -> None:
        """Show what has changed since."""
        runs = studio().live.runs()
        self._empty.set_visibility(not runs)
        if [one.id for one in runs] != [*self._cards]:
            self._box.clear()
            with self._box:
                self._cards = {one.id: RunCard(one) for one in runs}
        for one in runs:
            self._cards[one.id].show(one)


class RunCard:
    """A run at a glance, and the way to its page."""

    def __init__(self, run: RunNow) -> None:
        self._version: tuple[int, ...] | None = None
        self._preview = ""
        with ui.element("article").classes("panel run-card"):
            with ui.link(target=run_address(run.id)).classes("thumb") as link:
                link.props("tabindex=-1 aria-hidden=true")
                self._image = ui.element("img").props('alt="" loading=lazy')
                self._none = text("no preview yet", tag="span").classes("soft small")
            with ui.element("div").classes("row spread"):
                with heading("", level=2):
                    ui.link(run.name, run_address(run.id))
                self._state = ui.element("div")
            self._bar = Bar("steps done")
            with ui.element("div").classes("row spread small numbers"):
                self._steps, self._left = Words("span", ""), Words("span", "")
                self._left.classes("soft")
            with ui.element("div").classes("row spread loss"):
                self._loss = Words("span", "")
                self._loss.classes("small numbers")
                self._line = ui.html("", sanitize=False).classes("spark")
            self._reason = text("")
            self._reason.classes("soft small")

    def show(self, run: RunNow) -> None:
        """Only what is new travels to the browser."""
        self._left.say(run.time_left)
        if run.version == self._version:
            return
        self._version = run.version
        self._state.clear()
        with self._state:
            pill(run.state)
        self._steps.say(f"step {run.step} of {run.steps}" if run.steps else "preparing")
        self._bar.share(run.step / run.steps if run.steps else 0.0)
        self._loss.say("" if run.loss is None else f"loss {run.loss:.4f}")
        self._line.set_content(sparkline(run.losses))
        self._reason.say(run.reason)
        self._image.set_visibility(bool(run.preview))
        self._none.set_visibility(not run.preview)
        if run.preview and run.preview != self._preview:
            self._preview = run.preview
            self._image.props(f"src={api_address(run.id, 'previews', run.preview, '0', '1.png')}")


class QueueTable:
    """The jobs that are not done, with what can be done about each."""

    def __init__(self) -> None:
        self._shown: list[Job] | None = None
        self._box = ui.element("section").classes("stack")
        self.look()
        ui.timer(_SECONDS, self.look)

    def look(self) -> None:
        """Drawn again when a state has changed."""
        jobs = [job for job in studio().live.jobs() if job.state != "done"]
        told_of = [(job.id, job.state, job.reason) for job in jobs]
        if self._shown is not None and told_of == [(one.id, one.state, one.reason) for one in self._shown]:
            return
        self._shown = jobs
        self._box.clear()
        with self._box:
            heading("Queue", level=2)
            if not jobs:
                text("Nothing waits or runs.").classes("soft")
            else:
                self._table(jobs)

    def _table(self, jobs: list[Job]) -> None:
        with ui.element("div").classes("scroll-x").props("tabindex=0"), ui.element("table").classes("table"):
            with ui.element("thead"), ui.element("tr"):
                for title in ("Job", "State", "What", "Device", "Actions"):
                    text(title, tag="th").props("scope=col")
            with ui.element("tbody"):
                for job in jobs:
                    self._row(job)

    def _row(self, job: Job) -> None:
        with ui.element("tr"):
            text(str(job.id), tag="td")
            with ui.element("td"):
                pill(job.state)
            with ui.element("td"):
                text(what_of(job))
                if job.state == "queued" and job.after is not None:
                    text(f"behind job {job.after}").classes("soft small")
                if job.reason:
                    text(shown(job.reason, limit=300)).classes("soft small")
            text(job.device or "-", tag="td")
            with ui.element("td"), ui.element("div").classes("row"):
                job_buttons(job)


def what_of(job: Job) -> str:
    """A job in a few words."""
    if job.run:
        return f"train {job.run.rpartition('/')[2]}"
    return shown(" ".join(one for one in job.arguments if one != "--"), limit=200)


def job_buttons(job: Job) -> None:
    """Stop, resume, remove and the log, each where it is possible."""
    there, name = studio(), what_of(job)
    if job.state in ("queued", *AT_WORK):
        small_button("Stop", told(lambda: there.stop(job.id)), f"Stop {name}")
    if job.state in MAY_RESUME:
        small_button("Resume", told(lambda: there.resume(job.id)), f"Resume {name}")
    if job.state not in AT_WORK:
        small_button("Remove", told(lambda: there.remove(job.id)), f"Remove {name} from the queue")
    ui.link("Log", f"/api/jobs/{job.id}/log", new_tab=True).classes("small")


def small_button(title: str, act: object, label: str) -> ui.button:
    """`label` is what a screen reader says."""
    made = ui.button(title, on_click=act).props("flat dense no-caps").classes("quiet small-button")  # type: ignore[arg-type]
    made._props["aria-label"] = shown(label)
    return made

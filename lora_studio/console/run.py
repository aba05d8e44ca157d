"""A run as it is told while it goes on: bars in a terminal, lines now and then in a file."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from lora_studio.console import Bars, Screen, print_plan
from lora_studio.console.terminal import say_at_once
from lora_studio.text import duration
from lora_studio.training import events

SOON, SELDOM, SHARE = (
    5.0,
    60.0,
    0.05,
)  # seconds between two lines, at least and at most, and of what has passed


def run_screen(screen: Screen) -> RunScreen | RunLines:
    """A listener, within `with`."""
    return RunScreen(screen) if screen.is_terminal else RunLines(screen)


class RunScreen(Bars):
    """Draws progress bars and prints the plan and notes above them."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(screen)
        self.screen = screen

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.TrainingPlan):
            print_plan(event, self.screen)
        elif isinstance(event, events.StepDone):
            facts = f"loss {event.loss:.4f}  {event.seconds:.2f} s/step"
            self.show("training", event.step, event.steps, facts)
        elif isinstance(event, events.Progress):
            self.show(event.what, event.done, event.total)
        elif isinstance(event, events.StopAsked):
            say_at_once(event.text)
        else:
            self.screen.say(event.text)


class RunLines:
    """Prints a line when something begins and ends, and in between every few seconds, later every minute."""

    def __init__(self, screen: Screen, clock: Callable[[], float] = time.monotonic) -> None:
        self.screen, self._clock = screen, clock
        self._begun: dict[str, float] = {}  # what -> when its first line was told
        self._told = 0.0
        self._losses: list[float] = []
        self._first = 0  # step that was told

    def __enter__(self) -> RunLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is left to be drawn."""

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.TrainingPlan):
            print_plan(event, self.screen)
        elif isinstance(event, events.StepDone):
            self._step(event)
        elif isinstance(event, events.Progress):
            if self._due(event.what, last=event.done == event.total):
                self.screen.say(f"{event.what}: {event.done} of {event.total}")
        elif isinstance(event, events.StopAsked):
            say_at_once(event.text)
        else:
            self.screen.say(event.text)

    def _due(self, what: str, *, last: bool) -> bool:
        """Whether a line is told now."""
        now, is_first = self._clock(), what not in self._begun
        began = self._begun.setdefault(what, now)
        wait = min(SELDOM, max(SOON, SHARE * (now - began)))
        if not (is_first or last or now - self._told >= wait):
            return False
        self._told = now
        return True

    def _step(self, event: events.StepDone) -> None:
        """The mean loss since the line before, the time of a step, and how long the others will take."""
        self._first = self._first or event.step
        self._losses.append(event.loss)
        if not self._due("training", last=event.step == event.steps):
            return
        done, left = event.step - self._first, event.steps - event.step
        seconds = (self._clock() - self._begun["training"]) / done if done else event.seconds
        mean, self._losses = sum(self._losses) / len(self._losses), []
        self.screen.say(
            f"step {event.step} of {event.steps}: loss {mean:.4f}, {seconds:.2f} s/step, "
            f"{duration(left * seconds)} left"
        )

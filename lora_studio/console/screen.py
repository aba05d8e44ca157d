"""What a run shows while it works: the plan, progress bars and notes."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from lora_studio.console.events import memory_line, skipped_line, validation_line
from lora_studio.console.plan import print_plan
from lora_studio.training import events


class Screen:
    """A listener that draws progress bars and prints the plan and notes."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Screen:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def __call__(self, event: events.Event) -> None:
        """Show one event."""
        if isinstance(event, events.TrainingPlan):
            print_plan(event, self.bars.console)
        elif isinstance(event, events.StepDone):
            speed = f"loss {event.loss:.4f}  {event.seconds:.2f} s/step"
            self._advance("training", event.step, event.steps, speed)
        elif isinstance(event, events.StepSkipped):
            self.bars.console.print(skipped_line(event), markup=False, soft_wrap=True)
        elif isinstance(event, events.MemoryRanOut):
            self.bars.console.print(memory_line(event), markup=False, soft_wrap=True)
        elif isinstance(event, events.ValidationMeasured):
            self.bars.console.print(validation_line(event), markup=False, soft_wrap=True)
        elif isinstance(event, events.Progress):
            self._advance(event.what, event.done, event.total, "")
        else:
            self.bars.console.print(event.text, markup=False, soft_wrap=True)

    def _advance(self, what: str, done: int, total: int, facts: str) -> None:
        if what not in self.tasks:
            self.tasks[what] = self.bars.add_task(what, total=total, completed=done - 1, facts="")
        self.bars.update(self.tasks[what], completed=done, total=total, facts=facts)

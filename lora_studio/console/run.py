"""What a run shows: its plan, progress and notes, then what it leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_studio.console import Bars, Screen
from lora_studio.text import duration, file_size
from lora_studio.training import events

if TYPE_CHECKING:
    from lora_studio.training.finish import Finished
    from lora_studio.training.planning import RunPlan


class RunScreen(Bars):
    """A listener that draws progress bars and prints the plan and notes above them."""

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
        else:
            self.screen.say(event.text)


def print_plan(plan: events.TrainingPlan, screen: Screen) -> None:
    screen.print_rows(plan.rows, heading=f"{plan.name}: what will be trained")


def print_needs(plan: RunPlan, screen: Screen) -> None:
    screen.say()
    screen.print_rows(plan.rows, heading="what it takes")


def print_finished(result: Finished, screen: Screen) -> None:
    checks, summary = result.report.checks, result.summary
    rows = []
    if result.lora_file:
        made = "whole base" if result.lora_file.is_dir() else "LoRA file"
        rows.append((made, f"{result.lora_file}  ({file_size(summary['file_bytes'])})"))
    rows += [("embedding", f"{path}, the word {word!r}") for word, path in result.embeddings.items()]
    rows.append(("verified", _verified(checks)))
    if (previews := result.folder / "previews").is_dir():
        rows.append(("images", str(previews)))
    rows.append(("loss", str(result.folder / "loss.png")))
    if measured := summary["validation"]:
        best = f"{measured['relative_best']:.1%} at step {measured['best_step']}, whose checkpoint is kept"
        text = f"{measured['relative_last']:.1%} of the base's loss; the lowest was {best}"
        rows.append(("validation", text))
    if skipped := summary["steps_skipped"]:
        rows.append(("warning", f"{skipped} steps were not finite and skipped"))
    rows.append(("time", f"{duration(summary['seconds']['training'])} for the steps"))
    screen.say()
    screen.say_rows(rows)


def _verified(checks: dict[str, Any]) -> str:
    """What was looked at in a LoRA file and embeddings, or in the folder of a whole base."""
    if "tensors_trained" in checks:
        trained = f"{checks['tensors_trained']} of {checks['tensors']} tensors were trained"
        probe = f"through diffusers the probe differs by {checks['probe_difference']:.2%}"
        return f"{trained}, and all are as they should be; {probe}"
    mapped = f"{checks['keys_mapped']} layers map to the base; " if "keys_mapped" in checks else ""
    share = checks["probe_difference_share"]
    return f"{mapped}through diffusers the probe differs by {share:.2%} of the adapter's effect"

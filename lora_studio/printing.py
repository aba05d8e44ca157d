"""What the command line shows: the plan, progress and results."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from lora_studio.printing_buckets import bucket_lines
from lora_studio.printing_doctor import finding_lines
from lora_studio.printing_plan import duration, time_line
from lora_studio.printing_processes import process_lines
from lora_studio.printing_watch import held_out_lines, holdout_line, memory_line, pictures, skipped_line
from lora_studio.recipe_data import one_more_chunk
from lora_studio.training import events

if TYPE_CHECKING:
    from lora_studio.training.finish import Finished

COMMON_VIEWS = (30, 300)  # how often a picture is seen in runs that turn out well


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
        elif isinstance(event, events.HoldoutMeasured):
            self.bars.console.print(holdout_line(event), markup=False, soft_wrap=True)
        elif isinstance(event, events.Progress):
            self._advance(event.what, event.done, event.total, "")
        else:
            self.bars.console.print(event.text, markup=False, soft_wrap=True)

    def _advance(self, what: str, done: int, total: int, facts: str) -> None:
        if what not in self.tasks:
            self.tasks[what] = self.bars.add_task(what, total=total, completed=done - 1, facts="")
        self.bars.update(self.tasks[what], completed=done, total=total, facts=facts)


def print_plan(plan: events.TrainingPlan, console: Console) -> None:
    """What will be trained, line by line."""
    table = Table(
        show_header=False,
        box=None,
        pad_edge=False,
        title=f"{plan.name}: what will be trained",
        title_justify="left",
    )
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for title, text in plan_lines(plan):
        table.add_row(title, text)
    console.print(table, markup=False)


def plan_lines(plan: events.TrainingPlan) -> list[tuple[str, str]]:
    """The plan as (title, text) pairs."""
    remaining = plan.steps - plan.first_step + 1
    start = f", going on at step {plan.first_step}" if plan.first_step > 1 else ""
    by = ", ".join(f"{count} from {who}" for who, count in plan.captioned_by.items())
    lines = [
        ("base", plan.base),
        *(("", note) for note in plan.base_notes),
        ("images", f"{plan.images_used} used, {len(plan.images_excluded)} excluded"),
    ]
    lines += [("", f"excluded: {name} ({reason})") for name, reason in plan.images_excluded]
    lines += _data_lines(plan)
    lines += finding_lines(plan.findings)
    lines += [("captions", by)]
    lines += [("", f'"{caption}"') for caption in plan.captions]
    lines += [("", text) for text in (*plan.triggers, *plan.variation)]
    if plan.token_chunks > 1:
        windows = f"{plan.token_chunks} windows of the text encoder"
        lines.append(("", f"long captions fill up to {windows}; others beside them get empty ones"))
    if plan.captions_without_trigger:
        lines.append(("warning", f"{plan.captions_without_trigger} captions do not hold the trigger words"))
    if plan.preservation:
        lines.append(
            (
                "",
                f"{plan.preservation:.0%} of the pictures are shown without the trigger, e.g. "
                f'"{plan.preserved_caption}", and teach the base\'s own answer',
            )
        )
    lines += [("warning", text) for text in (*plan.caption_warnings, *_cut_lines(plan))]
    lines += bucket_lines(plan.buckets)
    lines += [
        (
            "steps",
            f"{plan.steps} of {plan.pictures_per_step} pictures{start}; "
            f"each picture is seen about {plan.views_per_image:.0f} times",
        ),
        *_little_or_much(plan.views_per_image),
        *process_lines(plan),
        ("trainable", f"{plan.num_parameters:,} parameters in {trained_in(plan)}"),
        *(("", note) for note in plan.adapter_notes),
        ("device", f"{plan.device}, base in {plan.precision}, what learns in float32"),
        ("learning rate", f"{plan.learning_rate:g}"),
        *([("", plan.warmup_note)] if plan.warmup_note else []),
        ("time", time_line(remaining * plan.seconds_per_step, plan)),
        ("run folder", str(plan.folder)),
    ]
    return lines


def trained_in(plan: events.TrainingPlan) -> str:
    """Where the trained numbers are."""
    layers = [f"{plan.num_layers} layers"] if plan.num_layers or not plan.num_tokens else []
    tokens = [f"{plan.num_tokens} new token{'s' * (plan.num_tokens > 1)}"] if plan.num_tokens else []
    return " and ".join(layers + tokens)


def _cut_lines(plan: events.TrainingPlan, limit: int = 5) -> list[str]:
    """The captions that are too long, with what is lost of them, and what to do."""
    lines = [str(cut) for cut in plan.captions_cut[:limit]]
    if (more := len(plan.captions_cut) - limit) > 0:
        lines.append(f"{more} more captions are cut")
    if lines and (setting := one_more_chunk(plan.token_chunks)):
        lines[-1] += f"; {setting} reads more of long captions"
    return lines


def _data_lines(plan: events.TrainingPlan) -> list[tuple[str, str]]:
    """What else there is to know about the pictures, as (title, text) pairs."""
    lines = held_out_lines(plan)
    lines += _class_lines(plan.class_pictures)
    lines += [
        ("repeats", f"{pictures(count)} in {folder}, {repeats} times an epoch each")
        for folder, count, repeats in plan.repeats
    ]
    lines += [("", f"note: {name}: {note}") for name, note in plan.notes]
    lines += [
        ("transparency", f"{pictures(count)} with clear parts, laid on {colour}")
        for colour, count in plan.backgrounds.items()
    ]
    if plan.masks:
        lines.append(("masks", f"{pictures(plan.masks)} learned only where the mask is white"))
    if weight := plan.masked_preservation:
        lines.append(("", f"outside of it the base's own answer is kept, with weight {weight:g}"))
    return lines


def _class_lines(found: events.ClassPictures | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    sources = {"drawn by the base": found.drawn, "from folders": found.from_folders}
    counts = " and ".join(f"{count} {source}" for source, count in sources.items() if count)
    weights = " or ".join(f"{weight:g}" for weight in found.weights)
    return [
        ("class images", f'{counts}, e.g. "{found.prompt}"'),
        ("", f"{found.per_picture:g} in a batch besides each of its pictures, with weight {weights}"),
    ]


def _little_or_much(views: float) -> list[tuple[str, str]]:
    """A line where experience says that a picture is seen too seldom or too often."""
    low, high = COMMON_VIEWS
    if low <= views <= high:
        return []
    little, advice = ("little", "more steps or fewer") if views < low else ("a lot", "fewer steps or more")
    return [("", f"that is {little}: {low} to {high} times are common; take {advice} pictures")]


def print_finished(result: Finished, console: Console) -> None:
    """Where everything is."""
    checks, summary = result.report.checks, result.summary
    console.print()
    if result.lora_file:
        made = "whole base" if result.lora_file.is_dir() else "LoRA file"
        size = f"{summary['file_bytes'] / 1e6:.1f} MB"
        console.print(f"{made:12} {result.lora_file}  ({size})", markup=False, soft_wrap=True)
    for word, path in result.embeddings.items():
        console.print(f"embedding    {path}, the word {word!r}", markup=False, soft_wrap=True)
    console.print(f"verified     {_verified(checks)}", soft_wrap=True)
    if (previews := result.folder / "previews").is_dir():
        console.print(f"pictures     {previews}", markup=False, soft_wrap=True)
    console.print(f"loss         {result.folder / 'loss.png'}", markup=False, soft_wrap=True)
    if measured := summary["holdout"]:
        console.print(
            f"held out     {measured['relative_last']:.1%} of the base's loss; the lowest was "
            f"{measured['relative_best']:.1%} at step {measured['best_step']}, whose checkpoint is kept",
            soft_wrap=True,
        )
    if summary["steps_skipped"]:
        console.print(f"warning      {summary['steps_skipped']} steps were not finite and skipped")
    console.print(f"time         {duration(summary['seconds']['training'])} for the steps")


def _verified(checks: dict[str, Any]) -> str:
    """What was looked at in a LoRA file and embeddings, or in the folder of a whole base."""
    if "tensors_trained" in checks:
        return (
            f"{checks['tensors_trained']} of {checks['tensors']} tensors were trained, and all are as they "
            f"should be; through diffusers the probe differs by {checks['probe_difference']:.2%}"
        )
    mapped = f"{checks['keys_mapped']} layers map to the base; " if "keys_mapped" in checks else ""
    share = checks["probe_difference_share"]
    return f"{mapped}through diffusers the probe differs by {share:.2%} of the adapter's effect"

"""What a run takes, in words: time, memory, disk, and what to change if it does not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from lora_studio.training.events import TrainingPlan
    from lora_studio.training.planning.advice import Advice
    from lora_studio.training.planning.disk import Disk
    from lora_studio.training.planning.memory import Memory
    from lora_studio.training.planning.plan import RunPlan

LAST = "take a smaller base or another device"
PLACES = {
    "caches": "latents and captions",
    "mean": "mean of the weights",
    "originals": "the base's own values of what is trained",
}


def duration(seconds: float) -> str:
    """In words: "2 h 5 min", "4 min 40 s" or "12 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def time_line(steps: float, plan: TrainingPlan) -> str:
    """How long the run takes, and what of it."""
    others = {"held-out pictures": plan.seconds_of_holdout, "previews": plan.seconds_of_previews}
    parts = {"the steps": steps} | {what: seconds for what, seconds in others.items() if seconds}
    listed = ", ".join(f"{duration(seconds)} for {what}" for what, seconds in parts.items())
    return f"about {listed}" if len(parts) == 1 else f"about {duration(sum(parts.values()))}: {listed}"


def amount(num_bytes: float) -> str:
    """In words: "1.50 GiB" or "12.3 MiB"."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if num_bytes >= size:
            return f"{num_bytes / size:.{2 if unit == 'GiB' else 1}f} {unit}"
    return f"{num_bytes / 2**10:.1f} KiB"


def print_needs(plan: RunPlan, console: Console) -> None:
    """What comes after the lines on what will be trained."""
    table = Table(show_header=False, box=None, pad_edge=False, title="what it takes", title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for title, text in (*memory_lines(plan), *disk_lines(plan.disk), *_before_lines(plan)):
        table.add_row(title, text)
    console.print()
    console.print(table, markup=False)


def memory_lines(plan: RunPlan) -> list[tuple[str, str]]:
    """What of the device's memory is held, and what to change if there is not enough."""
    memory = plan.memory
    answer = "fits into" if memory.fits else "DOES NOT FIT into"
    lines = [
        ("memory", f"{amount(memory.total)} on {plan.training.device}: {answer} {amount(memory.room)}"),
        *(("", f"{amount(size)} frozen {name}") for name, size in memory.parts.items()),
    ]
    learned = ("adapters", "optimizer", "mean", "originals", "caches", "gradients", "activations")
    lines += [("", f"{amount(getattr(memory, n))} {PLACES.get(n, n)}") for n in learned if getattr(memory, n)]
    if memory.previews:
        lines.append(("", f"{amount(memory.previews)} while previews are drawn, instead of a step's"))
    if memory.passes > 1:
        lines.append(("warning", f"memory ran out: the largest batch is trained in {memory.passes} passes"))
    return lines + _advice_lines(memory, plan.advice)


def _advice_lines(memory: Memory, advice: tuple[Advice, ...]) -> list[tuple[str, str]]:
    from lora_studio.training.planning.advice import together

    lines = [("change" if one is advice[0] else "", _advice_line(one)) for one in advice]
    if advice and not advice[0].enough:
        count, after = together(memory, advice)
        which = "all of these" if count == len(advice) else f"the first {count} of these"
        answer = "which fits" if after.fits else f"which does not fit either: {LAST}"
        lines.append(("", f"{which} together: about {amount(after.total)}, {answer}"))
    return lines or ([] if memory.fits else [("change", f"nothing helps: {LAST}")])


def _advice_line(one: Advice) -> str:
    enough = ", enough alone" if one.enough else ""
    known = "measured" if one.measured else "counted"
    return f"{one.change}: {amount(one.saves)} less ({known}){enough}; {one.cost}"


def disk_lines(disk: Disk) -> list[tuple[str, str]]:
    """What is written, and whether there is room for it."""
    lines = [
        ("disk", f"{amount(disk.total)} in the run folder, {amount(disk.free)} are free"),
        ("", f"{amount(disk.checkpoints)} for {disk.num_checkpoints} checkpoints at a time"),
        ("", f"{amount(disk.previews)} previews, {amount(disk.file)} the finished files"),
        ("", f"{amount(disk.caches)} in the caches for all runs"),
    ]
    if disk.total > disk.free:
        lines.append(("warning", "that is more than there is: make room, or keep fewer checkpoints"))
    return lines


def _before_lines(plan: RunPlan) -> list[tuple[str, str]]:
    made = ", ".join(f"{count} {what}" for what, count in plan.cached.items())
    text = f"{duration(plan.seconds_of_preparing)} to read, look and encode"
    lines = [("before it", f"{text}; {made} were made and are cached now" if made else text)]
    if plan.folder_in_use:
        lines.append(
            ("note", f"{plan.training.folder} holds a run already: go on with --resume, or use --out")
        )
    return lines

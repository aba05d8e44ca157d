"""What the command line shows: the plan, progress and results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_studio.console.screen import Screen
from lora_studio.data.doctor.finding import DoctorReport
from lora_studio.recipe.data import one_more_chunk
from lora_studio.text import duration, plural
from lora_studio.text import memory_size as amount
from lora_studio.training import events

if TYPE_CHECKING:
    from lora_studio.training.events import TrainingPlan
    from lora_studio.training.planning.advice import Advice
    from lora_studio.training.planning.disk import Disk
    from lora_studio.training.planning.memory import Memory
    from lora_studio.training.planning.plan import RunPlan


COMMON_VIEWS = (30, 300)  # how often an image is seen in runs that turn out well


def print_plan(plan: events.TrainingPlan, screen: Screen) -> None:
    """What will be trained, line by line."""
    screen.print_rows(plan_lines(plan), heading=f"{plan.name}: what will be trained")


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
    lines += DoctorReport(plan.findings, {}).plan_rows()
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
                f"{plan.preservation:.0%} of the images are shown without the trigger, e.g. "
                f'"{plan.preserved_caption}", and teach the base\'s own answer',
            )
        )
    lines += [("warning", text) for text in (*plan.caption_warnings, *_cut_lines(plan))]
    lines += plan.buckets.rows()
    lines += [
        (
            "steps",
            f"{plan.steps} of {plan.images_per_step} images{start}; "
            f"each image is seen about {plan.views_per_image:.0f} times",
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


def held_out_lines(plan: events.TrainingPlan) -> list[tuple[str, str]]:
    """Which images are not trained on, as (title, text) pairs of the plan."""
    if not plan.held_out:
        return []
    measured = "no loss is measured on them"
    if plan.validation_every:
        measured = f"their loss is measured before the first step and every {plan.validation_every}"
    names = ", ".join(plan.held_out)
    return [("held out", f"{plural(len(plan.held_out))}, not trained on; {measured}: {names}")]


def _data_lines(plan: events.TrainingPlan) -> list[tuple[str, str]]:
    """What else there is to know about the images, as (title, text) pairs."""
    lines = held_out_lines(plan)
    lines += _class_lines(plan.regularization_images)
    lines += [
        ("repeats", f"{plural(count)} in {folder}, {repeats} times an epoch each")
        for folder, count, repeats in plan.repeats
    ]
    lines += [("", f"note: {name}: {note}") for name, note in plan.notes]
    lines += [
        ("transparency", f"{plural(count)} with clear parts, laid on {colour}")
        for colour, count in plan.backgrounds.items()
    ]
    if plan.masks:
        lines.append(("masks", f"{plural(plan.masks)} learned only where the mask is white"))
    if weight := plan.masked_preservation:
        lines.append(("", f"outside of it the base's own answer is kept, with weight {weight:g}"))
    return lines


def _class_lines(found: events.RegularizationSummary | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    sources = {"drawn by the base": found.drawn, "from folders": found.from_folders}
    counts = " and ".join(f"{count} {source}" for source, count in sources.items() if count)
    weights = " or ".join(f"{weight:g}" for weight in found.weights)
    return [
        ("regularization images", f'{counts}, e.g. "{found.prompt}"'),
        ("", f"{found.per_image:g} in a batch besides each of its images, with weight {weights}"),
    ]


def _little_or_much(views: float) -> list[tuple[str, str]]:
    """A line where experience says that an image is seen too seldom or too often."""
    low, high = COMMON_VIEWS
    if low <= views <= high:
        return []
    little, advice = ("little", "more steps or fewer") if views < low else ("a lot", "fewer steps or more")
    return [("", f"that is {little}: {low} to {high} times are common; take {advice} images")]


LAST = "take a smaller base or another device"
PLACES = {
    "caches": "latents and captions",
    "mean": "mean of the weights",
    "originals": "the base's own values of what is trained",
}


def time_line(steps: float, plan: TrainingPlan) -> str:
    """How long the run takes, and what of it."""
    others = {"validation images": plan.seconds_of_validation, "previews": plan.seconds_of_previews}
    parts = {"the steps": steps} | {what: seconds for what, seconds in others.items() if seconds}
    listed = ", ".join(f"{duration(seconds)} for {what}" for what, seconds in parts.items())
    return f"about {listed}" if len(parts) == 1 else f"about {duration(sum(parts.values()))}: {listed}"


def print_needs(plan: RunPlan, screen: Screen) -> None:
    """What comes after the lines on what will be trained."""
    screen.say()
    screen.print_rows(
        (*memory_lines(plan), *disk_lines(plan.disk), *_before_lines(plan)), heading="what it takes"
    )


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


def process_lines(plan: events.TrainingPlan) -> list[tuple[str, str]]:
    """Of the plan, as (title, text) pairs; nothing for a single process."""
    if plan.processes == 1:
        return []
    fewest, more = divmod(plan.batch_size, plan.processes)
    each = f"{fewest} or {fewest + 1}" if more else str(fewest)
    lines = [
        (
            "processes",
            f"{plan.processes}; training.batch_size = {plan.batch_size} counts the images of all of them "
            f"together, so each has {each}",
        )
    ]
    if idle := max(0, plan.processes - plan.batch_size):
        lines.append(
            (
                "warning",
                f"{idle} of the {plan.processes} processes have nothing to train; launch fewer, or take a "
                f"larger batch: training.batch_size = {plan.processes} gives each an image",
            )
        )
    return lines

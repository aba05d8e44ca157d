"""What a run says of its validation images and of steps that were skipped, in words."""

from __future__ import annotations

from lora_studio.training import events


def skipped_line(event: events.StepSkipped) -> str:
    """A step that was not finite, in words."""
    if event.scale > 1:
        return (
            f"step {event.step} skipped: its gradients overflow in float16 with the loss times "
            f"{event.scale:g}, which is halved"
        )
    return (
        f"warning: step {event.step} skipped: its loss is {event.loss:g} and its gradient norm "
        f"{event.grad_norm:g}; {event.in_a_row} in a row, {event.most} end the run"
    )


def memory_line(event: events.MemoryRanOut) -> str:
    """A micro-batch that did not fit, in words."""
    return (
        f"warning: the memory ran out: each batch is learned in {event.passes} passes of up to "
        f"{images(event.rows)} from now on; what is learned stays the same, it takes a little longer"
    )


def validation_line(event: events.ValidationMeasured) -> str:
    """The loss on the validation images, in words."""
    if event.step == 0:
        return f"validation images before the first step: loss {event.loss:.4f}"
    best = ", the best so far" if event.best else ""
    share = f"{event.relative:.1%} of the base's"
    return f"validation images at step {event.step}: loss {event.loss:.4f}, {share}{best}"


def held_out_lines(plan: events.TrainingPlan) -> list[tuple[str, str]]:
    """Which images are not trained on, as (title, text) pairs of the plan."""
    if not plan.held_out:
        return []
    measured = "no loss is measured on them"
    if plan.validation_every:
        measured = f"their loss is measured before the first step and every {plan.validation_every}"
    names = ", ".join(plan.held_out)
    return [("held out", f"{images(len(plan.held_out))}, not trained on; {measured}: {names}")]


def images(count: int) -> str:
    """So many of them, in words."""
    return "1 image" if count == 1 else f"{count} images"

"""How the command line tells of several processes."""

from __future__ import annotations

from lora_studio.training import events


def process_lines(plan: events.TrainingPlan) -> list[tuple[str, str]]:
    """Of the plan, as (title, text) pairs; nothing for a single process."""
    if plan.processes == 1:
        return []
    fewest, more = divmod(plan.batch_size, plan.processes)
    each = f"{fewest} or {fewest + 1}" if more else str(fewest)
    lines = [
        (
            "processes",
            f"{plan.processes}; training.batch_size = {plan.batch_size} counts the pictures of all of them "
            f"together, so each has {each}",
        )
    ]
    if idle := max(0, plan.processes - plan.batch_size):
        lines.append(
            (
                "warning",
                f"{idle} of the {plan.processes} processes have nothing to train; launch fewer, or take a "
                f"larger batch: training.batch_size = {plan.processes} gives each a picture",
            )
        )
    return lines

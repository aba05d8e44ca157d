"""A sweep as the terminal shows it: what will be trained, each trial as it ends, and what was found."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_studio.console import Screen, columns
from lora_studio.console.evaluation import print_compared_runs
from lora_studio.sweep.report import compared, failures
from lora_studio.sweep.trials import setting_in_words
from lora_studio.sweep.varied import shown_value
from lora_studio.text import command_of, duration, plural, shown

if TYPE_CHECKING:
    from lora_studio.sweep import SweepPlan
    from lora_studio.sweep.result import SweepResult
    from lora_studio.sweep.running import Estimate, TrialChange

_MOST_ROWS = 40  # settings that are listed


def print_sweep_plan(plan: SweepPlan, folder: Path, found: Estimate | None, screen: Screen) -> None:
    """What is varied, every setting, and how long it takes; `found` None: that was not asked."""
    seeds = sorted({one.seed for one in plan.trials})
    trials = f"{plural(len(plan.settings), 'setting')} x {plural(len(seeds), 'seed')}"
    rows = [("trials", f"{len(plan.trials)}: {trials} ({', '.join(map(str, seeds))}), into {folder}")]
    if more := plan.total - len(plan.trials):
        rows.append(("then", f"{plural(more, 'trial')} more, with values that go by what these have found"))
    rows += [(one.option, one.in_words) for one in plan.varied]
    if plan.recipe.sweep.stop_early:
        rows.append(("ended early", "what after a ninth or a third of its steps is not among the best third"))
    rows.append(("compared", _measured_by(plan)))
    if found is not None:
        rows.append(("time", _time_in_words(found)))
    screen.print_rows(rows, heading=f"{plan.recipe.name}: what will be trained")
    screen.say()
    options = [one.option for one in plan.varied]
    table = columns(["setting", *options, "length"], right=("setting",))
    for number, values in enumerate(plan.settings[:_MOST_ROWS], start=1):
        training = next(one.recipe.training for one in plan.trials if one.setting == number)
        steps = f"{training.steps} steps" if training.epochs is None else f"{training.epochs:g} epochs"
        table.add_row(str(number), *(shown(shown_value(values[one])) for one in options), steps)
    screen.print(table)
    if (more := len(plan.settings) - _MOST_ROWS) > 0:
        screen.say(f"and {more} more")


def _measured_by(plan: SweepPlan) -> str:
    if plan.by == "validation":
        return "by the loss on validation images"
    budget = plan.recipe.evaluate
    return (
        f"by fidelity within drift {budget.drift:g} and leakage {budget.leakage:g}; {plan.drawn} images are "
        "drawn of each trial, and as many once of the base"
    )


def _time_in_words(found: Estimate) -> str:
    if found.seconds is None:
        return f"not known: {found.why}"
    fits = "" if found.fits else "; but it may not fit into memory: see `lora-studio plan`"
    return f"about {duration(found.seconds)}, with what is drawn, by a trial step{fits}"


def trial_in_words(change: TrialChange) -> str:
    """A line for a trial that has begun or ended."""
    trial, job = change.placed.trial, change.placed.job
    state = "waiting" if job is None else job.state
    what = f"{time.strftime('%H:%M:%S')} {trial.name} ({setting_in_words(trial.values)}) {state}"
    if state == "running":
        return f"{what}; {change.ended} of {change.total} have ended"
    took = f" in {duration(change.seconds)}" if state == "done" else ""
    reason = f": {shown(change.placed.reason, limit=300)}" if change.placed.reason else ""
    left = f"; about {duration(change.seconds_left)} left" if change.seconds_left else ""
    return f"{what}{took}{reason}; {change.ended} of {change.total} have ended{left}"


def print_sweep(result: SweepResult, written: Sequence[Path], screen: Screen) -> None:
    """The table of settings, what failed, and the recommended recipe as a difference to the given one."""
    if result.pooled:
        print_compared_runs(compared(result), screen)
        screen.say()
    failed = failures(result)
    screen.say_rows([(name, reason) for name, reason in failed], style="yellow")
    rows = [("recommended", result.why)]
    rows += [("change" if number == 0 else "", str(one)) for number, one in enumerate(result.changes)]
    if result.recommended is not None and not result.changes:
        rows.append(("change", "none: the given recipe has these values"))
    rows += [(path.name, str(path)) for path in written]
    if (recipe := next((path for path in written if path.suffix == ".toml"), None)) is not None:
        rows.append(("next", command_of("train", recipe)))
    screen.say_rows(rows)

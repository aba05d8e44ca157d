"""Ends trainings that are behind the others: asynchronous successive halving.

Li et al., "A System for Massively Parallel Hyperparameter Tuning", arXiv 1810.05934, section 3, with a
reduction of 3. As in Ray Tune a training is ended where it is not among the best third of those that came as
far, in place of waiting there; how far is told in shares of its own steps, as these may be what is varied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_studio.evaluate.choosing import measured_candidate, score_of
from lora_studio.runs import CHOICE, ReadOnlyRun
from lora_studio.sweep import SweepPlan
from lora_studio.sweep.folder import Placed
from lora_studio.training.prepare.resume import run_recipe

REDUCTION = 3
RUNGS = (1 / 9, 1 / 3)  # of a training's steps


@dataclass(frozen=True)
class Rung:
    """A measurement of a training that is at work."""

    step: int
    score: float  # the higher the better


def measurements(trial: Placed, plan: SweepPlan) -> list[Rung]:
    """All that were made while it trained, in the order of their steps."""
    run = ReadOnlyRun(trial.folder)
    if plan.by == "validation":
        found = [Rung(row["step"], 1 - row["relative"]) for row in run.measurements() if row["step"]]
    else:
        rows = [measured_candidate(row) for row in run.measurements(CHOICE)]
        found = [Rung(one.variant.step or 0, score_of(one, plan.budget)) for one in rows]
    return sorted(found, key=lambda one: one.step)


def rung_of(trial: Placed, plan: SweepPlan, share: float) -> Rung | None:
    """None if nothing was measured so late."""
    if not (found := measurements(trial, plan)):
        return None
    least = share * run_recipe(trial.folder).training.steps
    return next((one for one in found if one.step >= least), None)


def behind(trial: Placed, trials: Sequence[Placed], plan: SweepPlan) -> str:
    """Why a training should end, in a sentence; empty if it should go on. `trials`: all, also this one."""
    for share in RUNGS:
        if (own := rung_of(trial, plan, share)) is None:
            return ""
        there = [found for one in trials if (found := rung_of(one, plan, share)) is not None]
        ahead = sum(one.score > own.score for one in there)
        if len(there) >= REDUCTION and ahead >= len(there) / REDUCTION:
            return f"ended early: {ahead} of {len(there)} trainings were ahead of it by step {own.step}"
    return ""

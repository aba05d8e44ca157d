"""What a sweep found: each setting's measures with its seeds pooled, and the one that is recommended."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from lora_studio.errors import StudioError
from lora_studio.evaluate.choosing import FIDELITY, Candidate, Choice, candidate_of, choose, score_of
from lora_studio.evaluate.result import Evaluation, Interval, Measured, Variant
from lora_studio.evaluate.saved import saved_evaluation
from lora_studio.evaluate.statistics import COVERAGE, students_quantile
from lora_studio.evaluate.verdicts import verdicts_of
from lora_studio.recipe import Recipe, RecipeChange, changes
from lora_studio.sweep import By, SweepPlan
from lora_studio.sweep.folder import Placed, SweepFolder
from lora_studio.sweep.halving import measurements
from lora_studio.sweep.trials import Setting, setting_in_words, with_values
from lora_studio.text import plural

VALIDATION = "validation_loss"
_DIGITS = 3  # of the figures by which settings are told apart; what is equal then is decided by the cost


@dataclass(frozen=True)
class Tried:
    """A setting, and what was measured of its trials."""

    number: int
    values: Setting
    trials: tuple[Placed, ...]
    measured: tuple[Evaluation, ...]  # of those that were
    cost: tuple[float, float]  # images shown, and bytes of the file

    @property
    def title(self) -> str:
        return f"setting {self.number} ({setting_in_words(self.values)})"


@dataclass(frozen=True)
class SweepResult:
    """All that was tried so far, and what is recommended of it; None while nothing was measured."""

    plan: SweepPlan
    tried: tuple[Tried, ...]
    pooled: Mapping[int, Evaluation]  # by the setting's number; those that were measured
    choice: Choice | None
    recommended: Tried | None
    seconds: Mapping[str, float]

    @property
    def recipe(self) -> Recipe | None:
        """The given one with the recommended values."""
        if (taken := self.recommended) is None:
            return None
        return with_values(self.plan.recipe, taken.values, self.plan.recipe.training.seed)

    @property
    def changes(self) -> list[RecipeChange]:
        """From the given recipe to the recommended one."""
        return [] if self.recipe is None else changes(self.plan.recipe, self.recipe)

    @property
    def why(self) -> str:
        """The reason in a sentence, of a sweep by validation with losses."""
        if self.choice is None or self.recommended is None:
            return "nothing was measured"
        if self.plan.by == "evaluation":
            return self.choice.why
        fidelity = self.choice.taken.fidelity
        most, value = 1 - fidelity.low, 1 - fidelity.value
        told = f"validation loss of at most {most:.1%} of the base's (mean {value:.1%})"
        return f"{self.recommended.title}: {told}, the least of {plural(len(self.pooled), 'setting')}"

    @property
    def unfinished(self) -> list[Placed]:
        """Trials that have no end yet, here or in another process."""
        ended = ("done", "failed")
        return [p for one in self.tried for p in one.trials if p.job is None or p.job.state not in ended]

    def scores(self) -> dict[int, float | None]:
        """Of each setting, the higher the better; None while it is being tried, nothing if it failed."""
        budget, by = self.plan.budget, self.plan.by
        found = dict[int, float | None]()
        for one in self.tried:
            if one.number in self.pooled:
                found[one.number] = score_of(_candidate(0, self.pooled[one.number], by), budget)
            elif any(each in self.unfinished for each in one.trials):
                found[one.number] = None
            elif known := [last for each in one.trials for last in measurements(each, self.plan)[-1:]]:
                found[one.number] = known[0].score  # it was ended early
        return found

    def to_json(self) -> dict[str, Any]:
        """As `sweep.json` has it: the plan, each trial's and each setting's figures, the recommendation."""
        taken = self.recommended
        trials = [self._trial(one) for tried in self.tried for one in tried.trials]
        settings = [
            {
                "setting": one.number,
                "values": dict(one.values),
                "seeds": len(one.measured),
                "measures": {
                    each.name: each.interval.to_json()
                    for each in (self.pooled[one.number].measures if one.number in self.pooled else ())
                },
            }
            for one in self.tried
        ]
        recommended = None
        if taken is not None and self.choice is not None:
            differing = {one.option: [one.before, one.after] for one in self.changes}
            recommended = {"setting": taken.number, "values": dict(taken.values), "why": self.why}
            recommended |= {"within_budget": self.choice.within, "changes": differing}
        plan = {key: one for key, one in self.plan.to_json().items() if key not in ("trials", "settings")}
        return {**plan, "trials": trials, "settings": settings, "recommended": recommended}

    def _trial(self, one: Placed) -> dict[str, Any]:
        evaluation = measured(one, self.plan)
        measures = () if evaluation is None else evaluation.measures
        return {
            "name": one.trial.name,
            "setting": one.trial.setting,
            "seed": one.trial.seed,
            "state": "waiting" if one.job is None else one.job.state,
            "reason": one.reason,
            "seconds": round(self.seconds.get(one.trial.name, 0.0), 1) or None,
            "measures": {each.name: each.interval.to_json() for each in measures},
        }


def result_of(plan: SweepPlan, folder: SweepFolder) -> SweepResult:
    """What is there by now, of finished trials."""
    placed = folder.placed(plan)
    tried = []
    for number, values in enumerate(plan.settings, start=1):
        own = tuple(one for one in placed if one.trial.setting == number)
        found = tuple(one for one in (measured(each, plan) for each in own) if one is not None)
        tried.append(Tried(number, values, own, found, _cost(own)))
    pooled = pool([one for one in tried if one.measured])
    choice, taken = _choose(plan, [one for one in tried if one.measured], pooled)
    return SweepResult(plan, tuple(tried), pooled, choice, taken, folder.seconds())


def measured(one: Placed, plan: SweepPlan) -> Evaluation | None:
    """What was measured of a trial that is done; None if nothing was."""
    if one.job is None or one.job.state != "done":
        return None
    if plan.by == "validation":
        return _validation(one)
    try:
        return saved_evaluation(one.folder)
    except StudioError:
        return None


def _validation(one: Placed) -> Evaluation | None:
    """The validation loss of what the run's file is made of, as an evaluation of that alone."""
    found = _summary(one.folder)
    losses, step = found.get("validation"), found.get("checkpoint", {}).get("step")
    if not losses:
        return None
    loss = float(losses["relative_best" if step == losses["best_step"] else "relative_last"])
    measure = Measured(VALIDATION, Interval(loss, loss, loss, 1), {})
    return Evaluation(one.trial.name, Variant(step), {}, (), (), (measure,), ())


def _summary(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "summary.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _cost(trials: Sequence[Placed]) -> tuple[float, float]:
    sizes = [found["file_bytes"] for one in trials if "file_bytes" in (found := _summary(one.folder))]
    return float(trials[0].trial.work), float(min(sizes, default=0))


def pool(tried: Sequence[Tried]) -> dict[int, Evaluation]:
    """By the setting's number, one evaluation of all its seeds.

    A measure is the mean over seeds. Its interval is the mean of theirs, which says what other prompts would
    change, widened by what other seeds would: the scatter between seeds, taken from all settings together
    because two or three seeds of one say too little of it.
    """
    found = {}
    for one in tried:
        names = [each.name for each in one.measured[0].measures]
        measures = []
        for name in names:
            parts = [each for each in (seed.measure(name) for seed in one.measured) if each is not None]
            reach = seeds_reach(name, tried) / math.sqrt(len(parts))
            measures.append(_pooled(parts, reach))
        first = replace(one.measured[0], name=f"{one.number}", measures=tuple(measures), nearest=())
        found[one.number] = replace(first, verdicts=verdicts_of(first.measures))
    return found


def _pooled(parts: Sequence[Measured], reach: float) -> Measured:
    intervals = [one.interval for one in parts]
    intervals = [one for one in intervals if math.isfinite(one.value)] or intervals
    value = mean(one.value for one in intervals)
    below = math.hypot(mean(one.value - one.low for one in intervals), reach)
    above = math.hypot(mean(one.high - one.value for one in intervals), reach)
    interval = Interval(value, value - below, value + above, intervals[0].questions)
    questions = sorted({number for one in parts for number in one.per_question})
    return Measured(parts[0].name, interval, {number: _over_seeds(parts, number) for number in questions})


def _over_seeds(parts: Sequence[Measured], question: int) -> float:
    values = [one.per_question.get(question, math.nan) for one in parts]
    known = [one for one in values if math.isfinite(one)]
    return mean(known) if known else math.nan


def seeds_reach(name: str, tried: Sequence[Tried]) -> float:
    """How far a measure of one training is from the mean over seeds, at most, in 95 % of trainings.

    0 if no setting has two seeds: then nothing is known of it.
    """
    squares, freedom = 0.0, 0
    for one in tried:
        found = [each.interval.value for seed in one.measured if (each := seed.measure(name)) is not None]
        found = [value for value in found if math.isfinite(value)]
        if len(found) > 1:
            squares += sum((value - mean(found)) ** 2 for value in found)
            freedom += len(found) - 1
    if not freedom:
        return 0.0
    return students_quantile(1 - (1 - COVERAGE) / 2, freedom) * math.sqrt(squares / freedom)


def _choose(
    plan: SweepPlan, tried: Sequence[Tried], pooled: Mapping[int, Evaluation]
) -> tuple[Choice | None, Tried | None]:
    """By the rule that chooses checkpoints; of equals that of fewer images shown, or less file."""
    ordered = sorted(tried, key=lambda one: (one.cost, one.number))
    candidates = [_candidate(place, pooled[one.number], plan.by) for place, one in enumerate(ordered)]
    budget = plan.budget

    def tried_of(one: Candidate) -> Tried:
        return ordered[one.variant.step or 0]

    choice = choose(candidates, budget, titled=lambda one: tried_of(one).title, kind="setting")
    return choice, None if choice is None else tried_of(choice.taken)


def _candidate(place: int, evaluation: Evaluation, by: By) -> Candidate:
    """What the rule knows of a setting, with its place by cost where a checkpoint has its step."""
    found = candidate_of(evaluation)
    measures = {name: _rounded(one) for name, one in found.measures.items()}
    if by == "validation" and (loss := evaluation.measure(VALIDATION)) is not None:
        value, low, high = 1 - loss.interval.value, 1 - loss.interval.high, 1 - loss.interval.low
        measures = {FIDELITY: _rounded(Interval(value, low, high, 1))}
    return Candidate(Variant(place), measures, found.spoiled)


def _rounded(one: Interval) -> Interval:
    value, low, high = (round(end, _DIGITS) for end in (one.value, one.low, one.high))
    return Interval(value, low, high, one.questions)

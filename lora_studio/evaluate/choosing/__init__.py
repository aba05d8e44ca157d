"""The rule by which one of several checkpoints, or of several strengths, is taken, and the words for why.

Taken is the highest lower bound of fidelity among those that keep the budgets of drift and leakage; of equals
the earlier checkpoint, and the lower strength. The lower bound, not the mean: of many that are measured on
few images the highest mean is the luckiest. A budget is kept if the mean does, whose upper end would refuse
everything on so few images. Of drift that is the trimmed mean (`statistics.usual_of`): a good run, too,
changes one prompt of ten wholly, and whether eight prompts hold one of these is chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_studio.evaluate.result import Evaluation, Interval, Variant
from lora_studio.evaluate.statistics import usual_of
from lora_studio.text import plural

FIDELITY, DRIFT, LEAKAGE = "fidelity", "drift", "leakage"  # of `evaluate.measures`
SPOILED = frozenset({"burnt"})  # decided verdicts with which nothing is worth having
_BEYOND, _MOST_EXCESS = -4.0, 1e3  # in scores
LEAST_BUDGET = 0.01  # by which an excess is divided, if the budget is less


@dataclass(frozen=True)
class Budget:
    """What a checkpoint or strength may cost."""

    drift: float
    leakage: float

    def of(self, measure: str) -> float:
        return self.drift if measure == DRIFT else self.leakage


@dataclass(frozen=True)
class Candidate:
    """What the rule knows of a checkpoint at a strength."""

    variant: Variant
    measures: Mapping[str, Interval]  # fidelity, drift and leakage; those that could be measured
    spoiled: tuple[str, ...] = ()  # of SPOILED

    @property
    def fidelity(self) -> Interval:
        return self.measures.get(FIDELITY, Interval(math.nan, math.nan, math.nan, 0))

    def beyond(self, budget: Budget) -> dict[str, float]:
        """Measure -> by how many times the budget it goes beyond it."""
        found = {}
        for name in (DRIFT, LEAKAGE):
            allowed = budget.of(name)
            value = self.measures[name].value if name in self.measures else math.nan
            if value > allowed:  # not of NaN: what is not known cannot be held against it, and is said
                found[name] = (value - allowed) / max(allowed, LEAST_BUDGET)
        return found

    def to_json(self) -> dict[str, Any]:
        """As a line of `choice.jsonl` has it: `measured_candidate` reads it."""
        intervals = {name: one.to_json() for name, one in self.measures.items()}
        named = {"step": self.variant.step, "strength": self.variant.strength}
        return named | {"measures": intervals, "spoiled": list(self.spoiled)}


def candidate_of(evaluation: Evaluation) -> Candidate:
    """What the rule needs of an evaluation."""
    found = {name: one for name in (FIDELITY, DRIFT, LEAKAGE) if (one := evaluation.measure(name))}
    spoiled = {one.word for one in evaluation.verdicts if one.decided} & SPOILED
    intervals = {
        name: usual_of(one.per_question) if name == DRIFT else one.interval for name, one in found.items()
    }
    return Candidate(evaluation.variant, intervals, tuple(sorted(spoiled)))


def measured_candidate(row: Mapping[str, Any]) -> Candidate:
    """What `to_json` gave. Raises KeyError, TypeError or ValueError for anything else."""
    intervals = {}
    for name, values in row["measures"].items():
        value, low, high = (
            math.nan if values[key] is None else float(values[key]) for key in ("value", "low", "high")
        )
        intervals[str(name)] = Interval(value, low, high, int(values["questions"]))
    step = row["step"]
    variant = Variant(None if step is None else int(step), float(row["strength"]))
    return Candidate(variant, intervals, tuple(map(str, row["spoiled"])))


@dataclass(frozen=True)
class Choice:
    """The one that was taken of all that were measured."""

    taken: Candidate
    candidates: tuple[Candidate, ...]
    budget: Budget
    within: bool  # whether it keeps the budgets; else it goes least beyond them
    why: str
    facts: Mapping[str, Any] = field(default_factory=dict)  # what was asked, and by which encoder

    def to_json(self) -> dict[str, Any]:
        """As `best.json` has it."""
        rows = [one.to_json() | {"within_budget": not one.beyond(self.budget)} for one in self.candidates]
        budget = {DRIFT: self.budget.drift, LEAKAGE: self.budget.leakage}
        head = {"step": self.taken.variant.step, "strength": self.taken.variant.strength, "why": self.why}
        return head | {"within_budget": self.within, "budget": budget, "candidates": rows, **self.facts}


def choose(
    candidates: Sequence[Candidate],
    budget: Budget,
    facts: Mapping[str, Any] | None = None,
    *,
    titled: Callable[[Candidate], str] | None = None,
    kind: str = "",
) -> Choice | None:
    """The one to take; None if fidelity could be measured of none.

    `titled` and `kind` are words for `why`, where candidates are neither checkpoints nor strengths.
    """
    known = [one for one in candidates if not math.isnan(one.fidelity.low)]
    if not known:
        return None
    taken = min(known, key=lambda one: _rank(one, budget))
    within = not taken.beyond(budget) and not taken.spoiled
    several = len({one.variant.strength for one in known}) > 1
    title = f"strength {taken.variant.strength:g}" if several else f"step {taken.variant.step}"
    several = several and len({one.variant.step for one in known}) == 1
    kind = kind or ("strength" if several else "checkpoint")
    why = _why(titled(taken) if titled else title, kind, taken, known, budget)
    return Choice(taken, tuple(candidates), budget, within, why, facts or {})


def _rank(one: Candidate, budget: Budget) -> tuple[bool, float, float, float, float]:
    """A total order of all there can be, so that a candidate that is overtaken once is never taken later."""
    excess = sum(one.beyond(budget).values())
    step = math.inf if one.variant.step is None else one.variant.step
    return bool(one.spoiled), excess, -one.fidelity.low, step, one.variant.strength


def score_of(one: Candidate, budget: Budget) -> float:
    """A number for who knows nothing of the rule: the higher, the sooner it would be taken.

    The lower bound of fidelity, which is at least -2; beyond a budget below that by the excess alone.
    """
    excess, low = sum(one.beyond(budget).values()), one.fidelity.low
    score = _BEYOND - min(excess, _MOST_EXCESS) if excess or math.isnan(low) else low
    return score - 2 * _MOST_EXCESS if one.spoiled else score


def _why(title: str, kind: str, taken: Candidate, known: Sequence[Candidate], budget: Budget) -> str:
    limits = f"drift {budget.drift:g} and leakage {budget.leakage:g}"
    low = f"{title}: fidelity of at least {taken.fidelity.low:+.3f} (mean {taken.fidelity.value:+.3f})"
    if taken.beyond(budget) or taken.spoiled:
        over = ", ".join(
            f"{name} {taken.measures[name].value:.3f} for {budget.of(name):g}"
            for name in taken.beyond(budget)
        )
        return (
            f"{low}; none of {plural(len(known), kind)} keeps {limits}, and this goes least beyond ({over})"
        )
    keeping = sum(not one.beyond(budget) and not one.spoiled for one in known)
    told = f"{low}, the most of {keeping} of {plural(len(known), kind)}, those within {limits}"
    if unknown := [name for name in (DRIFT, LEAKAGE) if name not in taken.measures]:
        told += f"; {' and '.join(unknown)} could not be measured"
    return told


def measured_in_vain(candidates: Sequence[Candidate], budget: Budget) -> int:
    """How many at the end, in the order in which they were measured, were no better choice than before."""
    if (choice := choose(candidates, budget)) is None:
        return 0
    return len(candidates) - 1 - candidates.index(choice.taken)

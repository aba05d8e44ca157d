"""Which of several bases suits a set of images better: paired by image, where the interval tells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from lora_studio.evaluate.assessing import ASPECTS, HIGHER_IS_BETTER, Aspect, BaseAssessment
from lora_studio.evaluate.result import Interval
from lora_studio.evaluate.statistics import mean_of


@dataclass(frozen=True)
class BaseDifference:
    """By how much the first base is better than the second: decibels, cosines, or the gap's log ratio."""

    aspect: Aspect
    first: str
    second: str
    better_by: Interval  # above 0: the first is better

    @property
    def sign(self) -> int:
        """1 if the first is better, -1 if the second is, 0 if the images do not tell."""
        return int(self.better_by.low > 0) - int(self.better_by.high < 0)


@dataclass(frozen=True)
class BaseRanking:
    """`places`: the bases from the best, those that cannot be told apart together; each with its points."""

    places: tuple[tuple[str, ...], ...]
    points: dict[str, int]  # for each other base and aspect: 1 if it is better, -1 if it is worse
    differences: tuple[BaseDifference, ...]

    def to_json(self) -> dict[str, Any]:
        """As `assessment.json` has it under "ranking"."""
        differences = [
            {**asdict(one), "better_by": one.better_by.to_json(), "sign": one.sign}
            for one in self.differences
        ]
        return {
            "places": [list(one) for one in self.places],
            "points": self.points,
            "differences": differences,
        }


def rank_bases(assessments: Sequence[BaseAssessment]) -> BaseRanking:
    """By points, an aspect each: what images do not tell counts for neither."""
    points = {one.base: 0 for one in assessments}
    differences = [
        BaseDifference(aspect, first.base, second.base, _better_by(aspect, first, second))
        for first, second in combinations(assessments, 2)
        for aspect in ASPECTS
    ]
    for one in differences:
        points[one.first] += one.sign
        points[one.second] -= one.sign
    places = tuple(
        tuple(name for name, had in points.items() if had == value)
        for value in sorted(set(points.values()), reverse=True)
    )
    return BaseRanking(places, points, tuple(differences))


def _better_by(aspect: Aspect, first: BaseAssessment, second: BaseAssessment) -> Interval:
    sign = 1 if aspect in HIGHER_IS_BETTER else -1

    def value(figures: float) -> float:
        return math.log(figures) if aspect == "gap" and figures > 0 else figures

    pairs = zip(first.images, second.images, strict=True)
    return mean_of(
        {
            place: sign * (value(one.figures[aspect]) - value(other.figures[aspect]))
            for place, (one, other) in enumerate(pairs)
        }
    )

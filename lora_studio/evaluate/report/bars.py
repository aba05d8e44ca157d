"""A measure's bar: value, interval, thresholds and the base on one scale, as shares of its width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lora_studio.evaluate.report.words import MeasureWords, figure, interval_in_words
from lora_studio.evaluate.result import Interval
from lora_studio.evaluate.verdicts import Threshold

_MARGIN = 0.06  # of the scale, on both sides


@dataclass(frozen=True)
class MeasureBar:
    """Places are shares of the width, from 0 at the left to 1 at the right."""

    low: float
    value: float
    high: float
    unchanged: float
    limits: tuple[tuple[Threshold, float], ...]


def bar_of(interval: Interval, words: MeasureWords, limits: Sequence[Threshold]) -> MeasureBar:
    """One whose scale holds the interval, what the base has, and the thresholds."""
    ends = [_finite(end, interval.value) for end in (interval.low, interval.high)]
    known = [*ends, interval.value, words.unchanged, *(one.value for one in limits)]
    low, high = min(known), max(known)
    margin = (high - low or 1.0) * _MARGIN
    low, width = low - margin, high - low + 2 * margin

    def place(value: float) -> float:
        return (value - low) / width

    marks = tuple((one, place(one.value)) for one in limits)
    return MeasureBar(place(ends[0]), place(interval.value), place(ends[1]), place(words.unchanged), marks)


def _finite(value: float, instead: float) -> float:
    return value if math.isfinite(value) else instead


def limits_in_words(limits: Sequence[Threshold], words: MeasureWords) -> str:
    """ "leaks above 0.100; memorised above 0.300"."""
    sides = {True: "above", False: "below"}
    told = (f"{one.word} {sides[one.above]} {figure(one.value, words, signed=False)}" for one in limits)
    return "; ".join(told)


def bar_in_words(interval: Interval, words: MeasureWords, limits: Sequence[Threshold]) -> str:
    """What a screen reader says in place of the bar."""
    said = f"{words.title} {interval_in_words(interval, words)}, the base is at {words.unchanged:g}"
    told = limits_in_words(limits, words)
    return f"{said}; {told}" if told else said

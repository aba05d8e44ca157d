"""What the measures mean, in a word: only where the whole interval is beyond the word's threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lora_studio.evaluate.result import Interval, Measured, Verdict
from lora_studio.evaluate.statistics import MOST_QUESTIONS, excludes, more_questions
from lora_studio.text import plural


@dataclass(frozen=True)
class Threshold:
    """The word is earned where the measure is above it, or below."""

    word: str
    measure: str
    value: float
    above: bool
    sentence: str  # of what was found, with {value}, {low} and {high}
    reason: str  # why it is where it is

    def is_beyond(self, interval: Interval) -> bool:
        return interval.low > self.value if self.above else interval.high < self.value


LEARNED, NO_EFFECT, OVERFITTED = "learned", "no effect", "overfitted"
THRESHOLDS = (
    Threshold(
        LEARNED,
        "fidelity",
        0.2,
        True,
        "with the trigger its images go {value:.0%} of the way from the base's to the reference images",
        "a fifth of the way is where people begin to see it in images side by side; the base's own images "
        "with the trigger are at 0",
    ),
    Threshold(
        NO_EFFECT,
        "change",
        0.1,
        False,
        "with the trigger its images change {value:.0%} as much as with another seed",
        "what changes images a tenth as much as another seed does cannot be seen; a file that UIs do not "
        "load, or one of zeros, is at 0",
    ),
    Threshold(
        "leaks",
        "leakage",
        0.15,
        True,
        "without the trigger its images go {value:.0%} of the way to the reference images, too",
        "below it what was learned is not seen without the trigger; with preservation it is 0.05 or less",
    ),
    Threshold(
        "memorised",
        "memorisation",
        0.02,
        True,
        "{value:.0%} of its images of captions that were trained on are copies of training images",
        "a copy is beyond all that images reach that were not trained on, and no one of 500 other scenes is: "
        "were 1 in 50 chance, two of 12 images or three of 15 would surely be more",
    ),
    Threshold(
        OVERFITTED,
        "prompt_following",
        -0.5,
        False,
        "of its images with the trigger the encoder finds the prompts {value:.0%} less surely",
        "a style hides a part of what the encoder knows of plain images: good runs lose up to two fifths",
    ),
    Threshold(
        OVERFITTED,
        "diversity",
        0.5,
        False,
        "its images of one prompt differ {value:.0%} as much from seed to seed as the base's",
        "one subject, or one style, takes some of the variety; less than half of it is left of few images",
    ),
    Threshold(
        OVERFITTED,
        "validation_loss",
        1.05,
        True,
        "its loss on images that were not trained on is {value:.0%} of the base's",
        "above 1 it is worse than the base on what it was taught; 5 % more is beyond the noise of few images",
    ),
    Threshold(
        "burnt",
        "burn",
        0.2,
        True,
        "{value:.0%} of its images have clipped colours, contrast, saturation or sharpness beyond all of the "
        "base's and the references'",
        "a strong style moves a few images beyond; a fifth of them is a strength or rate that is too high",
    ),
    Threshold(
        "worse than the base",
        "plain_following",
        -0.15,
        False,
        "of its images without the trigger the encoder finds the prompts {value:.0%} less surely",
        "that is one prompt in seven that the base drew and it does not; good runs lose none",
    ),
)
EFFECTS = {"leaks", "memorised", OVERFITTED}
"""Words that are said only of what has an effect, and "memorised" and "overfitted" of what was learned."""


def verdicts_of(measures: Sequence[Measured]) -> tuple[Verdict, ...]:
    """The words that are earned, then those that more prompts would decide.

    A word of two measures is said once, by the first that earned it.
    """
    by_name = {one.name: one for one in measures}
    decided = dict[str, Verdict]()
    for one in THRESHOLDS:
        found = by_name.get(one.measure)
        if found is not None and one.word not in decided and one.is_beyond(found.interval):
            decided[one.word] = Verdict(one.word, one.measure, _sentence(one, found.interval))
    if NO_EFFECT in decided:
        return tuple(one for word, one in decided.items() if word not in EFFECTS)
    return (*decided.values(), *_open(by_name, decided))


def _open(by_name: Mapping[str, Measured], decided: Mapping[str, Verdict]) -> list[Verdict]:
    found = list[Verdict]()
    for one in THRESHOLDS:
        measured = by_name.get(one.measure)
        said = {*decided, *(verdict.word for verdict in found)}
        if measured is None or one.word in said or measured.interval.value != measured.interval.value:
            continue
        if excludes(measured.interval, one.value) or _shows_nothing(one, measured):
            continue
        more = more_questions(measured.interval, one.value)
        found.append(Verdict(one.word, one.measure, _undecided(one, measured.interval, more), False, more))
    return found


def _shows_nothing(one: Threshold, measured: Measured) -> bool:
    """Whether no image has what the word is about: how rare it may yet be the interval says."""
    return one.above and not any(measured.per_question.values())


def _undecided(one: Threshold, interval: Interval, more: int) -> str:
    side = "above" if one.above else "below"
    would = f"{plural(more, 'more prompt')} would"
    if more >= MOST_QUESTIONS:
        would = "it is as good as on it, and no number of prompts would tell"
    ends = f"{interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f})"
    name = one.measure.replace("_", " ")
    return f'not decided: "{one.word}" is {name} {side} {one.value:g}, and it is {ends}; {would}'


def _sentence(one: Threshold, interval: Interval) -> str:
    size = abs(interval.value) if not one.above and interval.value < 0 else interval.value
    low, high = interval.low, interval.high
    return (
        f"{one.sentence.format(value=size)} (95 % interval {low:.2f} to {high:.2f}, threshold {one.value:g})"
    )

"""What people read of measures and verdicts: titles, one plain line each, and how figures are written."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lora_studio.evaluate.result import Evaluation, Group, Interval, Variant, Verdict
from lora_studio.text import in_words, shown


@dataclass(frozen=True)
class MeasureWords:
    """How a measure is shown. `unchanged` is its value where the base does as well as what was tuned."""

    title: str
    line: str
    unchanged: float = 0.0
    signed: bool = False  # a difference to the base, written with + or -
    digits: int = 3


MEASURES: Mapping[str, MeasureWords] = {
    "fidelity": MeasureWords(
        "Fidelity",
        "With the trigger: how far its images went to the reference images. 0 is the base, 1 is all the way.",
        signed=True,
    ),
    "prompt_following": MeasureWords(
        "Prompt following",
        "With the trigger: how well its images show the rest of the prompt. 0 is as the base, -1 not at all.",
        signed=True,
    ),
    "plain_following": MeasureWords(
        "Plain prompt following",
        "Without the trigger: how well its images show the prompt. 0 is as the base, -1 is not at all.",
        signed=True,
    ),
    "drift": MeasureWords(
        "Drift",
        "Without the trigger: how much its images changed. 0 is not at all, 1 is as much as by another seed.",
    ),
    "leakage": MeasureWords(
        "Leakage",
        "Without the trigger: how far its images went to the reference images all the same. 0 is the base.",
        signed=True,
    ),
    "change": MeasureWords(
        "Change",
        "With the trigger: how much its images changed. 0 is not at all, 1 is as much as by another seed.",
    ),
    "memorisation": MeasureWords(
        "Memorisation",
        "The share of its images of captions trained on that are copies of training images.",
    ),
    "diversity": MeasureWords(
        "Diversity",
        "With the trigger: how different its images of one prompt are. 1 is as different as the base's.",
        unchanged=1.0,
    ),
    "burn": MeasureWords(
        "Burn",
        "The share of its images whose colours, contrast or sharpness go beyond all of the base's and the "
        "references'.",
    ),
    "validation_loss": MeasureWords(
        "Validation loss",
        "The loss on images that were not trained on. 1 is the base's, less is better.",
        unchanged=1.0,
    ),
}
GROUP_TITLES: Mapping[Group, str] = {
    "like_training": "Captions like those trained on",
    "new_contexts": "The trigger in new contexts",
    "class_alone": "The class without the trigger",
    "unrelated": "Unrelated prompts",
}
GROUP_LINES: Mapping[Group, str] = {
    "like_training": "Here what was learned should show clearly.",
    "new_contexts": "Here it should show, too, and the prompt should be followed.",
    "class_alone": "Here nothing should change: what changes has leaked into the class.",
    "unrelated": "Here nothing should change: what changes the base has lost.",
}
GRAVITY: Mapping[str, str] = {
    "learned": "good",
    "leaks": "warning",
    "overfitted": "warning",
    "memorised": "error",
    "burnt": "error",
    "no effect": "error",
    "worse than the base": "error",
}
"""Of a verdict's word: the class of its mark. Another word is a note."""


def measure_words(name: str) -> MeasureWords:
    return MEASURES.get(name, MeasureWords(in_words(name).capitalize(), ""))


def figure(value: float | None, words: MeasureWords, *, signed: bool | None = None) -> str:
    """A measure's value as everything writes it; "not measured" of NaN."""
    if value is None or not math.isfinite(value):
        return "not measured"
    sign = "+" if (words.signed if signed is None else signed) else ""
    return f"{value:{sign}.{words.digits}f}"


def interval_in_words(interval: Interval, words: MeasureWords) -> str:
    """ "+0.213 (+0.150 to +0.270)"."""
    if not math.isfinite(interval.value):
        return "not measured"
    low, high = (figure(one, words) for one in (interval.low, interval.high))
    return f"{figure(interval.value, words)} ({low} to {high})"


def variant_in_words(variant: Variant) -> str:
    """ "checkpoint of step 400, strength 0.8"."""
    step = "" if variant.step is None else f"checkpoint of step {variant.step}, "
    return f"{step}strength {variant.strength:g}"


def sentence_of(verdict: Verdict) -> str:
    """Its sentence without the words that stand before it anyway."""
    return verdict.sentence.removeprefix("not decided: ")


def headline(evaluation: Evaluation) -> str:
    """The decided verdicts in a line: "learned, leaks"; or that there is none."""
    words = dict.fromkeys(one.word for one in evaluation.verdicts if one.decided)
    if words:
        return ", ".join(words)
    return "not decided" if evaluation.verdicts else "no verdict"


_ROOTED = re.compile(r"(?:~[^/\\\s]*|[A-Za-z]:)?[/\\]")
_FOLDERS = re.compile(r"(?<![\w.:/\\])(?:~|\.{1,2}|[A-Za-z]:)?(?:[/\\][^\s/\\'\"`,;()]+)*[/\\](?=[^\s/\\])")


def without_folders(text: str) -> str:
    """A sentence without the folders of paths in it: a report is given away. Hub ids stay."""
    return _FOLDERS.sub("", shown(text))


def fact_in_words(value: str | float) -> str:
    """A fact's value; of a path, whose folders may hold spaces, the last name alone."""
    if not isinstance(value, str):
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    if _ROOTED.match(value):
        return shown(re.split(r"[/\\]", value.rstrip("/\\"))[-1])
    return without_folders(value)


def gravity_of(word: str) -> str:
    return GRAVITY.get(word, "note")


def gravest(words: Iterable[str]) -> str:
    """The class of the worst of them, "none" of none."""
    found = {GRAVITY.get(word, "note") for word in words}
    return next((one for one in ("error", "warning", "good") if one in found), "none")


def finite(per_question: Mapping[int, float]) -> dict[int, float]:
    """Without the questions whose figure could not be told."""
    return {number: value for number, value in per_question.items() if math.isfinite(value)}

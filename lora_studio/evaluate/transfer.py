"""Negative transfer: where the tuned model is worse than its base, by group of prompts and by image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lora_studio.errors import preview_names
from lora_studio.evaluate.questions import in_groups
from lora_studio.evaluate.result import Group, Interval, Measured, Question
from lora_studio.evaluate.statistics import mean_of
from lora_studio.text import plural

FOLLOWING = ("prompt_following", "plain_following")
_NAMED = 3  # prompts or images in a sentence
_LEAST = 0.02  # of the base's margin: less is nothing that anyone sees


@dataclass(frozen=True)
class Setback:
    """A group whose images surely follow their prompts less well than the base's, the worst prompts first."""

    group: Group
    interval: Interval  # of the base's margin, below 0
    prompts: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """For a page or a terminal."""
        called = self.group.replace("_", " ")
        worst = "; ".join(f'"{one}"' for one in self.prompts)
        ends = f"{-self.interval.value:.0%} ({-self.interval.high:.0%} to {-self.interval.low:.0%})"
        return f"worse than the base in following prompts of the group {called}, by {ends}; most in {worst}"


def setbacks(questions: Sequence[Question], measures: Sequence[Measured]) -> list[Setback]:
    """Of the groups in the order of how much they lost. Only where the whole interval is below 0."""
    found = []
    per_question = {n: v for one in measures if one.name in FOLLOWING for n, v in one.per_question.items()}
    for group, numbers in in_groups(questions).items():
        lost = {number: per_question[number] for number in numbers if number in per_question}
        interval = mean_of(lost)
        if interval.high < 0 and interval.value < -_LEAST:
            worst = sorted(lost, key=lambda number: lost[number])[:_NAMED]
            found.append(Setback(group, interval, tuple(questions[number].prompt for number in worst)))
    return sorted(found, key=lambda one: one.interval.value)


def setbacks_in_words(
    questions: Sequence[Question], measures: Sequence[Measured], losses: Mapping[str, float]
) -> Iterator[str]:
    """A sentence a group; and one of validation images whose loss is above the base's.

    `losses`: relative ones, by image.
    """
    yield from (one.sentence for one in setbacks(questions, measures))
    if worse := sorted((name for name, loss in losses.items() if loss > 1), key=lambda name: -losses[name]):
        named = preview_names([f"{name} ({losses[name]:.2f})" for name in worse], limit=_NAMED)
        yield f"the loss on {plural(len(worse), 'validation image')} is above the base's: {named}"

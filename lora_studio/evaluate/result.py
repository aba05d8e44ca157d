"""What an evaluation says: its questions, figures with intervals, verdicts, and what it rests on.

Everything that shows or compares evaluations (pages, plots, tables, choices) reads this and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, get_args

from PIL.Image import Image

Group = Literal["like_training", "new_contexts", "class_alone", "unrelated"]
GROUPS: tuple[Group, ...] = get_args(Group)
"""Captions like those trained on, the trigger in new contexts, the class without it, anything else."""


Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True)
class Question:
    """A prompt, and the words that its image is scored against: with the class in the trigger's place.

    Of a caption that was trained on width and height are its training image's; of others 0, a square.
    """

    group: Group
    prompt: str
    text: str
    width: int = 0
    height: int = 0

    @property
    def size(self) -> Size | None:
        """None: a square of the artist's side."""
        return (self.width, self.height) if self.width and self.height else None


@dataclass(frozen=True)
class Variant:
    """What was learned, as of a checkpoint (None: a file, or a run's newest), at a strength."""

    step: int | None = None
    strength: float = 1.0


class Artist(Protocol):
    """Draws with a base, and with what was learned on it; the base is loaded once for all variants."""

    drawn_with: Mapping[str, str | int | float]
    """What a base's image depends on beside prompt and seed: fingerprint, sampler, steps, guidance, side."""

    def draw(
        self, asked: Sequence[tuple[str, int]], variant: Variant | None, size: Size | None = None
    ) -> list[Image]:
        """One image for each prompt and seed, a square if no size is given; of the base without a variant."""

    def learned(self, variant: Variant) -> str:
        """SHA-256 of what it draws with: its images are cached by that; "" if they are not to be."""


@dataclass(frozen=True)
class Interval:
    """A mean over questions, and the ends of its 95 % interval; of no question all are NaN."""

    value: float
    low: float
    high: float
    questions: int

    def to_json(self) -> dict[str, float | int | None]:
        """NaN is null."""
        return {key: None if value != value else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Measured:
    """One measure: its difference to the base or its ratio, as `evaluate.measures` defines it by name.

    `per_question`: by the number of the question, means over seeds. `base` and `tuned`: the plain figures
    that `interval` compares, where there are such.
    """

    name: str
    interval: Interval
    per_question: Mapping[int, float]
    base: float | None = None
    tuned: float | None = None


@dataclass(frozen=True)
class Verdict:
    """A word of `evaluate.verdicts`, the measure that it rests on, and the sentence that explains it.

    Not `decided`: the interval holds the threshold, and about `more_questions` more would settle it.
    """

    word: str
    measure: str
    sentence: str
    decided: bool = True
    more_questions: int = 0


@dataclass(frozen=True)
class Near:
    """A drawn image and the training image nearest to it, and how near: 1 is the same image."""

    question: int
    seed: int
    training_image: str  # its name, without folders
    similarity: float
    copied: bool


@dataclass(frozen=True)
class Evaluation:
    """All that was found of one variant of one file or run."""

    name: str
    variant: Variant
    facts: Mapping[str, str | int | float]  # of base, file, encoder (name and sha256), sampler, images, clock
    questions: tuple[Question, ...]
    seeds: tuple[int, ...]
    measures: tuple[Measured, ...]
    verdicts: tuple[Verdict, ...]
    nearest: tuple[Near, ...] = ()
    notes: tuple[str, ...] = ()  # what could not be measured, and why; what was assumed

    def measure(self, name: str) -> Measured | None:
        """The one of that name, if it could be measured."""
        return next((one for one in self.measures if one.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """As `evaluation.json` has it: NaN is null, which strict readers of JSON know."""
        values = asdict(self)
        for one, told in zip(self.measures, values["measures"], strict=True):
            told["interval"] = one.interval.to_json()
            told["per_question"] = {key: _known(value) for key, value in one.per_question.items()}
            told |= {key: _known(told[key]) for key in ("base", "tuned")}
        return values


def _known(value: float | None) -> float | None:
    return None if value is None or value != value else value


def evaluation_of(values: Mapping[str, Any]) -> Evaluation:
    """What `to_json` gave. Raises KeyError, TypeError or ValueError for anything else."""
    given = dict(values)
    lists = {"questions": Question, "verdicts": Verdict, "nearest": Near}
    read: dict[str, Any] = {key: tuple(made(**one) for one in given[key]) for key, made in lists.items()}
    given |= read | {"variant": Variant(**given["variant"]), "seeds": tuple(given["seeds"])}
    given |= {"measures": tuple(map(_measured, given["measures"])), "notes": tuple(given["notes"])}
    return Evaluation(**given)


def _measured(values: Mapping[str, Any]) -> Measured:
    numbers = {key: float("nan") if value is None else value for key, value in values["interval"].items()}
    interval = Interval(numbers["value"], numbers["low"], numbers["high"], int(numbers["questions"]))
    given = values["per_question"].items()
    per_question = {int(number): float("nan") if value is None else value for number, value in given}
    return Measured(**{**values, "interval": interval, "per_question": per_question})

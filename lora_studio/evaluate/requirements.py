"""Bounds that an evaluation has to keep, as `--require` has them: "fidelity>=0.3, drift<=0.6"."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lora_studio.errors import StudioError
from lora_studio.evaluate.report.words import MEASURES, figure, interval_in_words, measure_words
from lora_studio.evaluate.result import Evaluation, Interval
from lora_studio.registry import did_you_mean
from lora_studio.text import shown

_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_REQUIREMENT = re.compile(r"\s*([\w -]*?)\s*([<>=!~]+)\s*(\S*)\s*")
_EXAMPLE = '"fidelity>=0.3, drift<=0.6, leakage<=0.15"'


@dataclass(frozen=True)
class Requirement:
    """A bound that the whole interval of a measure has to keep, not its mean alone."""

    measure: str
    operator: str
    bound: float

    def __str__(self) -> str:
        return f"{self.measure}{self.operator}{self.bound:g}"

    def is_kept(self, interval: Interval) -> bool:
        """Whether both ends are on the bound's good side; what was not measured keeps none."""
        keeps = _OPERATORS[self.operator]
        return keeps(interval.low, self.bound) and keeps(interval.high, self.bound)

    def failure(self, evaluation: Evaluation) -> str:
        """Why the evaluation does not keep it, in a sentence; "" if it does."""
        measured = evaluation.measure(self.measure)
        if measured is None or not math.isfinite(measured.interval.value):
            return f"{self} is required, and {self.measure} was not measured."
        interval, words = measured.interval, measure_words(self.measure)
        if self.is_kept(interval):
            return ""
        keeps, found = _OPERATORS[self.operator], interval_in_words(interval, words)
        if not (keeps(interval.low, self.bound) or keeps(interval.high, self.bound)):
            return f"{self} is required, and {self.measure} is {found}."
        beyond = interval.high if keeps(interval.low, self.bound) else interval.low
        reaches = f"its interval reaches to {figure(beyond, words)}; more prompts would narrow it"
        return f"{self} is required, and {self.measure} is {found}: {reaches}."


def requirements_of(text: str) -> tuple[Requirement, ...]:
    """The bounds in a list with commas. Raises StudioError that names all that cannot be read."""
    found, faults = list[Requirement](), list[str]()
    for part in text.split(","):
        match = _REQUIREMENT.fullmatch(part)
        if match is None:
            faults.append(f"'{shown(part.strip(), limit=60)}' is no bound; write it as {_EXAMPLE}")
            continue
        name, sign, bound = re.sub(r"[ -]", "_", match[1]), match[2], match[3]
        if name not in MEASURES:
            known = ", ".join(MEASURES)
            faults.append(f"unknown measure {name!r}{did_you_mean(name, list(MEASURES))}; known: {known}")
        if sign not in _OPERATORS:
            near = ">=" if ">" in sign else "<="
            faults.append(f"{sign} in {part.strip()!r} is not understood; write {near}, or one of > <")
        if not _is_number(bound):
            faults.append(f"'{shown(bound, limit=60)}' in {part.strip()!r} is no number; write one as 0.3")
        if not faults:
            found.append(Requirement(name, sign, float(bound)))
    if faults:
        raise StudioError(f"--require: {'; '.join(faults)}.")
    return tuple(found)


def _is_number(text: str) -> bool:
    is_spelled_so = re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.IGNORECASE) is not None
    return is_spelled_so and math.isfinite(float(text))


def failures(requirements: Sequence[Requirement], evaluation: Evaluation) -> list[str]:
    """A sentence for each that is not kept."""
    return [failure for one in requirements if (failure := one.failure(evaluation))]

"""Means over questions with 95 % intervals, from resampling whole questions.

What is measured of a question's images with several seeds is one number for each seed, paired with the
base's of the same seed. Seeds of one prompt are more alike than prompts are, so a question is a cluster:
clusters are drawn with replacement, each with all its seeds, since drawing seeds anew within them would count
their scatter twice (Davison and Hinkley 1997, Bootstrap Methods, section 3.8).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from lora_studio.evaluate.result import Interval
from lora_studio.rng import key

Array = npt.NDArray[np.float64]
RESAMPLES = 4000
COVERAGE = 0.95
FEW = (
    12  # questions; of fewer the interval holds Student's, too: resamples of few skewed values say too little
)
FEWEST = 8  # questions to resample; of fewer it is Student's interval, which knows no skew
TRIMMED, LEAST_TRIMMED = 8, 4  # questions of which one is left out at each end; of fewer none is
MOST_QUESTIONS = 1000  # that more could be advised


def mean_of(per_question: Mapping[int, float]) -> Interval:
    """The mean over questions; questions that are NaN were not measured."""
    values = _finite(list(per_question.values()))
    return bootstrap([values], lambda one: one.mean(axis=-1))


def share_of(per_question: Mapping[int, float]) -> Interval:
    """The mean of shares of images, 0 to 1. Where all are 0 or all are 1 nothing scatters, so the other end
    is Clopper and Pearson's (1934) for as many questions: of 14 that show nothing it is 0.23.
    """
    found = mean_of(per_question)
    if found.questions and found.value in (0.0, 1.0):
        low, high = clopper_pearson(round(found.value) * found.questions, found.questions)
        return Interval(found.value, low, high, found.questions)
    return Interval(found.value, max(0.0, found.low), min(1.0, found.high), found.questions)


def counted_share_of(per_question: Mapping[int, float], seeds: int) -> Interval:
    """A share of images that each have something or not, of the questions that were asked.

    The lower end is Clopper and Pearson's over images: what it shows with these questions and any seeds,
    whatever others would. It is on the safe side where questions differ, as then the count scatters less
    (Hoeffding 1956). The upper end is no lower than over questions: others may show more.
    """
    found = share_of(per_question)
    if not found.questions:
        return found
    images = found.questions * seeds
    low, high = clopper_pearson(round(found.value * images), images)
    return Interval(found.value, low, max(high, found.high), found.questions)


def clopper_pearson(count: int, number: int) -> tuple[float, float]:
    """The exact interval of a share of which `count` of `number` were seen (Clopper and Pearson 1934)."""
    return _least_share(count, number), 1 - _least_share(number - count, number)


def _least_share(count: int, number: int) -> float:
    """That of which so many or more are seen as rarely as the interval's end allows, by bisection."""
    if not count:
        return 0.0
    seen = np.arange(count, number + 1)
    ways = np.array(
        [math.lgamma(number + 1) - math.lgamma(k + 1) - math.lgamma(number - k + 1) for k in seen]
    )
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        chances = np.exp(ways + seen * math.log(middle) + (number - seen) * math.log1p(-middle))
        low, high = (middle, high) if chances.sum() < (1 - COVERAGE) / 2 else (low, middle)
    return (low + high) / 2


def usual_of(per_question: Mapping[int, float]) -> Interval:
    """The trimmed mean: without one of `TRIMMED` questions at each end, which a few that differ do not move.

    Where one question of ten may change wholly, the mean of few questions says by how many of these it met;
    this says what happens to the others (Tukey and McLaughlin 1963, Sankhya A 25).
    """
    values = _finite(list(per_question.values()))
    out = max(len(values) >= LEAST_TRIMMED, len(values) // TRIMMED)
    return bootstrap([values], lambda one: np.sort(one)[..., out : one.shape[-1] - out].mean(axis=-1))


def ratio_of(parts: Mapping[int, tuple[float, float]]) -> Interval:
    """The sum of the first numbers over the sum of the second, question by question drawn together.

    NaN where the second are all 0. Of numbers that cannot be negative, as distances, no end is.
    """
    pairs = [pair for pair in parts.values() if all(map(math.isfinite, pair))]
    tops, bottoms = (np.array([pair[side] for pair in pairs], np.float64) for side in (0, 1))
    if not len(pairs) or not bottoms.any():
        return Interval(math.nan, math.nan, math.nan, len(pairs))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = bootstrap([tops, bottoms], lambda top, bottom: top.sum(axis=-1) / bottom.sum(axis=-1))
    least = 0.0 if min(tops.min(), bottoms.min()) >= 0 else -math.inf
    return Interval(found.value, max(found.low, least), found.high, found.questions)


def bootstrap(columns: Sequence[Array], statistic: Callable[..., Array]) -> Interval:
    """The statistic of [N] columns, whose rows are drawn together, with its expanded percentile interval.

    `statistic` reduces the last axis. The percentiles are those at which the bootstrap of a normal mean is
    Student's interval (Hesterberg 2015, arXiv 1411.5279, section 5.3): plain ones are too narrow for few
    questions, by a factor of sqrt((N - 1) / N) and by the normal's quantile in place of Student's. The draws
    depend on N alone. Without a spread both ends are the value.
    """
    number = len(columns[0])
    if number == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    value = float(statistic(*columns))
    if number < 2:
        return Interval(value, math.nan, math.nan, number)
    if number < FEWEST:
        return _students(columns, statistic, value)
    rows = draws(number)
    found = statistic(*(one[rows] for one in columns))
    found = found[np.isfinite(found)]
    low, high = map(float, np.percentile(found, [100 * share for share in expanded(number)]))
    if number < FEW:
        students = _students(columns, statistic, value)
        low, high = min(low, students.low), max(high, students.high)
    return Interval(value, low, high, number)


@cache
def draws(number: int, resamples: int = RESAMPLES) -> npt.NDArray[np.int64]:
    """[resamples, number] rows of `number`: the same for every measure of as many questions."""
    return np.random.default_rng(key("bootstrap", number)).integers(0, number, (resamples, number))


def expanded(number: int, coverage: float = COVERAGE) -> tuple[float, float]:
    """The shares of the bootstrap's distribution that lie below the interval's ends."""
    quantile = students_quantile(1 - (1 - coverage) / 2, number - 1)
    tail = NormalDist().cdf(-math.sqrt(number / (number - 1)) * quantile)
    return tail, 1 - tail


def _students(columns: Sequence[Array], statistic: Callable[..., Array], value: float) -> Interval:
    """From the jackknife's standard error, which of a mean is the usual one."""
    number = len(columns[0])
    without = [float(statistic(*(np.delete(one, row) for one in columns))) for row in range(number)]
    error = math.sqrt((number - 1) * float(np.var(without)))
    half = students_quantile(1 - (1 - COVERAGE) / 2, number - 1) * error
    return Interval(value, value - half, value + half, number)


@cache
def students_quantile(share: float, freedom: int) -> float:
    """Of Student's t with a whole number of degrees of freedom, for a share above one half, by bisection."""
    low, high = 0.0, 1.0
    while students_share(high, freedom) < share:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if students_share(middle, freedom) < share else (low, middle)
    return (low + high) / 2


def students_share(value: float, freedom: int) -> float:
    """P(t <= value) for value >= 0: the finite series of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(value / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    if freedom == 1:
        return 0.5 + angle / math.pi
    term, total = (cosine, cosine) if freedom % 2 else (1.0, 1.0)
    for one in range(3 if freedom % 2 else 2, freedom, 2):
        term *= (one - 1) / one * cosine * cosine
        total += term
    inside = 2 / math.pi * (angle + sine * total) if freedom % 2 else sine * total
    return 0.5 + inside / 2


def more_questions(interval: Interval, threshold: float) -> int:
    """About how many more questions would make the interval exclude the threshold; 0 if it does.

    If the value stays: the width falls with the square root of their number. At most `MOST_QUESTIONS`: what
    that many would not decide is as good as on the threshold.
    """
    if excludes(interval, threshold) or math.isnan(interval.value):
        return 0
    reach = interval.high - interval.value if interval.value < threshold else interval.value - interval.low
    distance = abs(interval.value - threshold)
    if not math.isfinite(reach) or distance * math.sqrt(MOST_QUESTIONS / interval.questions) < reach:
        return MOST_QUESTIONS
    needed = math.ceil(interval.questions * (reach / distance) ** 2 - 1e-9)
    return min(MOST_QUESTIONS, max(1, needed - interval.questions))


def excludes(interval: Interval, threshold: float) -> bool:
    """Whether all of it is on one side of the threshold."""
    return interval.low > threshold or interval.high < threshold


def _finite(values: Sequence[float]) -> Array:
    found = np.asarray(values, np.float64)
    return found[np.isfinite(found)]

"""Intervals: against scipy, and by how often they hold an effect that is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from lora_studio.evaluate.result import Interval
from lora_studio.evaluate.statistics import (
    MOST_QUESTIONS,
    RESAMPLES,
    clopper_pearson,
    counted_share_of,
    expanded,
    mean_of,
    more_questions,
    ratio_of,
    share_of,
    students_quantile,
    usual_of,
)
from lora_studio.rng import key


def numbered(values) -> dict[int, float]:
    return dict(enumerate(map(float, values)))


@pytest.mark.parametrize("freedom", [1, 2, 3, 7, 8, 23, 60])
@pytest.mark.parametrize("share", [0.9, 0.975, 0.9999])
def test_students_quantile_is_scipys(freedom, share) -> None:
    assert students_quantile(share, freedom) == pytest.approx(stats.t.ppf(share, freedom), rel=1e-9)


@pytest.mark.parametrize("number", [12, 20, 40])
def test_a_means_interval_is_scipys_bootstrap_at_the_expanded_level(number) -> None:
    values = np.random.default_rng(3).gamma(3, 1, number)
    low, high = expanded(number)
    same_draws = np.random.default_rng(key("bootstrap", number))
    theirs = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=high - low,
        method="percentile",
        rng=same_draws,
    ).confidence_interval
    found = mean_of(numbered(values))
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), rel=1e-9)
    assert found.value == pytest.approx(values.mean()) and found.questions == number


def test_a_ratios_interval_is_scipys_with_other_draws() -> None:
    draw = np.random.default_rng(4)
    bottoms = draw.gamma(20, 0.05, 30)
    tops = 0.4 * bottoms * draw.gamma(8, 1 / 8, 30)
    low, high = expanded(30)
    theirs = stats.bootstrap(
        (tops, bottoms),
        lambda top, bottom, axis: top.sum(axis) / bottom.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        confidence_level=high - low,
        method="percentile",
        rng=5,
    ).confidence_interval
    found = ratio_of(dict(enumerate(zip(tops.tolist(), bottoms.tolist(), strict=True))))
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)  # of 4,000 draws


@pytest.mark.parametrize("number", [2, 4, 7])
def test_of_few_questions_it_is_students_interval(number) -> None:
    values = np.random.default_rng(number).normal(size=number)
    low, high = stats.t.interval(0.95, number - 1, values.mean(), values.std(ddof=1) / math.sqrt(number))
    found = mean_of(numbered(values))
    assert (found.low, found.high) == pytest.approx((low, high))


def test_the_same_values_have_the_same_interval_and_what_was_not_measured_does_not_count() -> None:
    values = numbered([0.1, 0.4, -0.2, 0.3, 0.5, 0.0, 0.2, 0.1, 0.35])
    assert mean_of(values) == mean_of(values) == mean_of(values | {9: math.nan})
    empty = mean_of({0: math.nan})
    assert empty.questions == 0 and math.isnan(empty.value) and math.isnan(empty.low)
    assert math.isnan(ratio_of({0: (1.0, 0.0), 1: (2.0, 0.0)}).value)
    assert math.isnan(ratio_of({0: (1.0, 1.0)}).low)


def test_a_ratio_of_distances_does_not_reach_below_0() -> None:
    one_changed_wholly = {number: (3.0 if number == 0 else 0.01, 1.0) for number in range(8)}
    found = ratio_of(one_changed_wholly)
    assert found.low == 0 and found.high > found.value > 0
    signed = {number: (one - 2.0, other) for number, (one, other) in one_changed_wholly.items()}
    assert ratio_of(signed).low < -2


@pytest.mark.parametrize("number", [8, 14, 30])
def test_shares_that_are_all_alike_have_clopper_and_pearsons_other_end(number) -> None:
    none, every = (share_of(numbered([one] * number)) for one in (0.0, 1.0))
    exact = stats.binomtest(0, number).proportion_ci(0.95, method="exact")
    assert (none.low, none.high) == pytest.approx((exact.low, exact.high))
    assert (every.low, every.high) == pytest.approx((1 - exact.high, 1.0))


@pytest.mark.parametrize("number", [4, 8, 9, 16, 40])
def test_what_is_usual_is_scipys_trimmed_mean(number) -> None:
    values = np.random.default_rng(number).gamma(1, 1, number)
    found = usual_of(numbered(values))
    assert found.value == pytest.approx(stats.trim_mean(values, max(1, number // 8) / number))
    assert found.low < found.value < found.high and found.questions == number
    assert usual_of(numbered([1, 2, 6])).value == 3


@pytest.mark.parametrize(("count", "number"), [(0, 4), (1, 12), (2, 12), (3, 15), (12, 12), (700, 1200)])
def test_the_interval_of_a_count_is_scipys(count, number) -> None:
    exact = stats.binomtest(count, number).proportion_ci(0.95, method="exact")
    assert clopper_pearson(count, number) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_a_counted_share_is_of_these_questions_below_and_of_all_above() -> None:
    found = counted_share_of(numbered([1, 1 / 3, 0, 0]), 3)
    over_images, over_questions = clopper_pearson(4, 12), share_of(numbered([1, 1 / 3, 0, 0]))
    assert found.value == pytest.approx(1 / 3) and found.low == over_images[0] > over_questions.low
    assert found.high == max(over_images[1], over_questions.high) and found.questions == 4
    assert counted_share_of(numbered([0] * 5), 3).high == share_of(numbered([0] * 5)).high
    assert math.isnan(counted_share_of({0: math.nan}, 3).value)


@pytest.mark.parametrize("spread", [0.0, 0.5, 5.0])
def test_what_is_counted_is_hardly_ever_less_than_its_lower_end(spread) -> None:
    """Whether the questions are alike or most of them show nothing."""
    draw, below = np.random.default_rng(2), 0
    for _ in range(500):
        chances = np.clip(0.2 * (1 + spread * draw.normal(size=5)), 0, 1)
        shares = draw.binomial(3, chances) / 3
        below += counted_share_of(numbered(shares), 3).low > chances.mean()
    assert below / 500 <= 0.025 + 2.6 * math.sqrt(0.025 * 0.975 / 500)


def test_how_many_more_questions_would_decide() -> None:
    assert more_questions(Interval(0.5, 0.0, 1.0, 10), 0.25) == 30  # half as wide needs four times as many
    assert more_questions(Interval(0.3, 0.25, 0.35, 10), 0.2) == 0
    assert more_questions(Interval(0.2, 0.1, 0.3, 10), 0.2) == MOST_QUESTIONS
    assert more_questions(Interval(0.0, -0.5, 0.5, 10), 0.25) == 30


def _mean(draw: np.random.Generator, number: int) -> tuple[Interval, float]:
    """Prompts differ by 0.5 and seeds of a prompt by 1, three of each."""
    seeds = 0.3 + draw.normal(0, 0.5, (number, 1)) + draw.normal(0, 1, (number, 3))
    return mean_of(numbered(seeds.mean(axis=1))), 0.3


def _skewed(draw: np.random.Generator, number: int) -> tuple[Interval, float]:
    return mean_of(numbered(draw.gamma(4, 1, number))), 4.0


def _ratio(draw: np.random.Generator, number: int) -> tuple[Interval, float]:
    bottoms = draw.gamma(20, 0.05, number)
    tops = 0.5 * bottoms * draw.gamma(8, 1 / 8, number)
    return ratio_of(dict(enumerate(zip(tops.tolist(), bottoms.tolist(), strict=True)))), 0.5


def _usual(draw: np.random.Generator, number: int) -> tuple[Interval, float]:
    return usual_of(numbered(draw.normal(0.4, 0.2, number))), 0.4


def coverage(make, number: int, trials: int) -> float:
    draw = np.random.default_rng(1)
    found = [make(draw, number) for _ in range(trials)]
    return sum(one.low <= truth <= one.high for one, truth in found) / trials


@pytest.mark.slow
@pytest.mark.parametrize("number", [8, 10, 12, 24, 48])
@pytest.mark.parametrize("make", [_mean, _skewed, _ratio, _usual])
def test_the_interval_holds_the_truth_in_95_of_100_trials(make, number) -> None:
    assert 0.93 <= coverage(make, number, 1000) <= 0.97


@pytest.mark.parametrize("make", [_mean, _ratio])
def test_the_interval_holds_the_truth_in_few_trials(make) -> None:
    assert coverage(make, 10, 200) >= 0.91  # 0.95 less 2.6 standard errors

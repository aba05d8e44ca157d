"""The course of a run's measurements in as few points as a chart shows: each look costs what is new."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TypeGuard

from lora_studio.runs.following import FollowedRows

Point = tuple[float, float]  # step, value


def is_number(value: object) -> TypeGuard[float]:
    """Also not NaN or endless, which a chart cannot place."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class ThinnedCurve:
    """Fewer than `most` points: means of equally many measurements, the last one of what has come since."""

    def __init__(self, most: int) -> None:
        self._most, self._each = most, 1
        self._means: list[Point] = []
        self._last: list[Point] = []

    def add(self, step: float, value: float) -> None:
        """Of a later step than those before."""
        self._last.append((step, value))
        if len(self._last) == self._each:
            self._means.append(_mean(self._last))
            self._last = []
        if len(self._means) >= self._most - 1:
            pairs = zip(self._means[::2], self._means[1::2], strict=False)
            odd = self._means[len(self._means) // 2 * 2 :]
            self._last = [*odd * self._each, *self._last]  # half of the next mean
            self._means = [_mean(pair) for pair in pairs]
            self._each *= 2

    @property
    def points(self) -> list[Point]:
        return [*self._means, _mean(self._last)] if self._last else [*self._means]


class FollowedCurve:
    """One measurement of a file of them, by its name in there."""

    def __init__(self, followed: FollowedRows, name: str, most: int) -> None:
        self._followed, self._name, self._most = followed, name, most
        self._begin()

    def _begin(self) -> None:
        self._rows, self._read, self._curve = self._followed.rows, 0, ThinnedCurve(self._most)

    def points(self) -> list[Point]:
        """Of all rows that were read up to now."""
        if self._rows is not self._followed.rows:  # another file, as a resume writes it
            self._begin()
        for row in itertools.islice(self._rows, self._read, None):
            if is_number(value := row.get(self._name)):
                self._curve.add(float(row["step"]), float(value))
        self._read = len(self._rows)
        return self._curve.points


def _mean(points: Sequence[Point]) -> Point:
    return sum(one[0] for one in points) / len(points), sum(one[1] for one in points) / len(points)


def thinned(values: list[float], most: int) -> list[float]:
    """The means of as many equal parts, or the values themselves if they are no more."""
    if len(values) <= most:
        return values
    ends = [round(part * len(values) / most) for part in range(most + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(ends)]

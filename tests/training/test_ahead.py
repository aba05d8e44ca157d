"""Micro-batches that a thread makes ahead."""

from __future__ import annotations

import threading

import pytest

from lora_studio.data.feed import READ_AHEAD, Prefetcher
from lora_studio.errors import DatasetError


class Made:
    """What was asked for, and by which thread."""

    def __init__(self) -> None:
        self.places: list[tuple[int, int]] = []
        self.threads: dict[tuple[int, int], str] = {}

    def __call__(self, step: int, number: int) -> tuple[int, int]:
        self.places.append((step, number))
        self.threads[step, number] = threading.current_thread().name
        if step == 7:
            raise DatasetError("no step 7")
        return step, number


def test_the_next_ones_are_made_by_another_thread_and_each_only_once() -> None:
    made = Made()
    ahead = Prefetcher(made, per_step=2)  # type: ignore[arg-type]
    asked = [(step, number) for step in range(1, 6) for number in (0, 1)]
    assert [ahead.get(*place) for place in asked] == asked
    assert len(set(made.places)) == len(made.places) <= len(asked) + READ_AHEAD
    assert all(made.threads[place].startswith("read-ahead") for place in asked[1:])


def test_after_a_jump_the_right_one_is_made() -> None:
    ahead = Prefetcher(Made(), per_step=1)  # type: ignore[arg-type]
    for step in (1, 2, 5, 3, 4, 1):
        assert ahead.get(step, 0) == (step, 0)


def test_a_failure_is_raised_where_it_belongs() -> None:
    ahead = Prefetcher(Made(), per_step=1)  # type: ignore[arg-type]
    assert [ahead.get(step, 0) for step in (5, 6)] == [(5, 0), (6, 0)]
    with pytest.raises(DatasetError, match="no step 7"):
        ahead.get(7, 0)
    assert ahead.get(8, 0) == (8, 0)

from __future__ import annotations

import math
import socket

from figures import at_least, at_most, difference_of, machine, share_of, table


def test_interval_is_close_to_the_normal_approximation():
    found = share_of([i % 4 == 0 for i in range(400)])
    half = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert found.share == 0.25
    assert abs(found.low - (0.25 - half)) < 0.01 and abs(found.high - (0.25 + half)) < 0.01


def test_difference_is_paired_by_prompt():
    hits = [i % 2 == 0 for i in range(100)]
    assert difference_of(hits, hits).high == 0.0
    assert difference_of([True] * 100, hits).share == 0.5


def test_criteria_include_their_limits():
    assert at_least("a", 0.9, 0.9).passed and not at_least("a", 0.899, 0.9).passed
    assert at_most("a", 0.05, 0.05).passed and not at_most("a", 0.051, 0.05).passed


def test_machine_does_not_name_the_host():
    assert socket.gethostname() not in machine().values()


def test_table_is_markdown():
    assert table(("a", "b"), [(1, 2)]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"

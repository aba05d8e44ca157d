"""The benchmark of the demo's time judges turn by turn, and measures what a file teaches on new scenes."""

from __future__ import annotations

import pytest
from demo_time import Turn, criteria, relative_losses, summary


def test_the_ratio_is_that_of_the_turns_and_not_of_their_sums() -> None:
    """A turn in which the machine did something else counts as one of three."""
    before = [Turn(0.2, 0.4), Turn(8.0, 16.0), Turn(0.2, 0.4)]
    after = [Turn(0.1, 0.2), Turn(0.8, 1.6), Turn(0.1, 0.2)]
    found = summary({"before": before, "after": after})
    assert (found["ratio"], found["processor_ratio"], found["turns"]) == (0.5, 0.5, 3)
    assert found["slowest_turn"] == {"before": 8.0, "after": 0.8}


def test_figures_may_differ_by_as_much_as_seeds_do() -> None:
    learned = {"learned": {"before": [0.80, 0.84], "after": [0.83, 0.83]}}
    assert [one.passed for one in criteria({"alone": {"ratio": 0.7}}, learned)] == [True, True]
    learned["learned"]["after"] = [0.89, 0.89]
    assert [one.passed for one in criteria({"alone": {"ratio": 0.8}}, learned)] == [False, False]


@pytest.mark.slow
def test_the_base_itself_has_learned_nothing_and_kept_all() -> None:
    assert relative_losses(None) == {"learned": 1.0, "kept": 1.0}

"""Where a tuned model is worse than its base, and only where that is sure."""

from __future__ import annotations

from lora_studio.evaluate.result import Interval, Measured, Question
from lora_studio.evaluate.transfer import setbacks, setbacks_in_words

NOWHERE = Interval(0.0, 0.0, 0.0, 0)
QUESTIONS = [
    *(Question("new_contexts", f"a fox {number}, zwx", f"a fox {number}") for number in range(8)),
    *(Question("unrelated", f"a boat {number}", f"a boat {number}") for number in range(8)),
]


def figures(called: list[float], plain: list[float]) -> list[Measured]:
    return [
        Measured("prompt_following", NOWHERE, dict(enumerate(called))),
        Measured("plain_following", NOWHERE, dict(enumerate(plain, start=8))),
        Measured("fidelity", NOWHERE, {0: -1.0}),
    ]


def test_a_group_that_surely_lost_is_named_with_its_worst_prompts() -> None:
    lost = [-0.3, -0.2, -0.25, -0.9, -0.4, -0.3, -0.2, -0.5]
    (found,) = setbacks(QUESTIONS, figures([0.1, -0.1] * 4, lost))
    assert found.group == "unrelated" and found.prompts == ("a boat 3", "a boat 7", "a boat 4")
    assert abs(found.interval.value - sum(lost) / 8) < 1e-9 and found.interval.high < 0
    assert found.sentence.startswith(
        "worse than the base in following prompts of the group unrelated, by 38%"
    )


def test_what_may_be_chance_or_cannot_be_seen_is_not_said() -> None:
    assert setbacks(QUESTIONS, figures([0.5, -0.6] * 4, [-0.001] * 8)) == []
    assert setbacks(QUESTIONS, []) == []


def test_the_group_that_lost_most_comes_first() -> None:
    found = setbacks(QUESTIONS, figures([-0.3, -0.2] * 4, [-0.5, -0.6] * 4))
    assert [one.group for one in found] == ["unrelated", "new_contexts"]


def test_validation_images_that_are_worse_than_with_the_base_are_named() -> None:
    losses = {"a.png": 0.8, "b.png": 1.2, "c.png": 1.5, "d.png": 1.0}
    (said,) = setbacks_in_words([], [], losses)
    assert said == "the loss on 2 validation images is above the base's: c.png (1.50), b.png (1.20)"

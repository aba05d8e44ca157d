"""Captions without their trigger words."""

from __future__ import annotations

import pytest

from lora_studio.data.trigger import without_trigger


@pytest.mark.parametrize(
    ("caption", "trigger", "class_words", "plain"),
    [
        ("a red star at night, zwx style", "zwx style", "", "a red star at night"),
        ("zwx style, a red star", "zwx style", "", "a red star"),
        ("a star, zwx style, at night", "zwx style", "", "a star, at night"),
        ("a zwx style star", "zwx style", "", "a star"),
        ("a vkq robot in a meadow", "vkq robot", "robot", "a robot in a meadow"),
        ("vkq robot", "vkq robot", "", ""),
        ("a vkq robot beside a vkq robot", "vkq robot", "robot", "a robot beside a robot"),
        ("art, a party", "art", "", "a party"),
        ("two vkq robots", "vkq robot", "robot", "two robots"),
        ("a <s1> dog, zwx-like", "<s1> dog", "dog", "a dog, zwx-like"),
        ("a red star", "zwx style", "", None),
        ("a red star", "", "", None),
    ],
)
def test_the_trigger_gives_way_to_the_class_or_goes_with_its_comma(
    caption: str, trigger: str, class_words: str, plain: str | None
) -> None:
    assert without_trigger(caption, trigger, class_words) == plain

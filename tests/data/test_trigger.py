"""Captions without their trigger words."""

from __future__ import annotations

import pytest

from lora_studio.data.captions.trigger import (
    contains_trigger,
    needs_class_words,
    without_trigger,
    without_triggers,
)


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


TRIGGERS = {"vkq": "robot", "vkq cat": "cat", "zwx style": ""}


@pytest.mark.parametrize(
    ("caption", "own", "plain"),
    [
        ("a vkq beside a vkq cat, zwx style", "vkq", "a robot beside a cat"),
        ("a vkq beside a vkq cat, zwx style", "zwx style", "a robot beside a cat"),
        ("a vkq", "zwx style", None),
        ("a vkq", "", None),
        ("zwx style", "zwx style", ""),
    ],
)
def test_an_image_of_two_subjects_is_shown_without_both_triggers(
    caption: str, own: str, plain: str | None
) -> None:
    assert without_triggers(caption, own, TRIGGERS.get(own, ""), TRIGGERS) == plain


@pytest.mark.parametrize(
    ("caption", "needs"),
    [
        ("a photo of vkq", True),
        ("A vkq on a beach", True),
        ("vkq", True),
        ("the vkq, at night", True),
        ("a vkq style star", False),
        ("a star, vkq", False),
        ("vkq, a star", False),
        ("a star", False),
    ],
)
def test_the_class_is_needed_where_nothing_is_named_without_the_trigger(caption: str, needs: bool) -> None:
    assert needs_class_words(caption, "vkq") == needs


def test_an_image_s_own_class_words_win_over_another_one_s_for_the_same_trigger():
    assert without_triggers("a vkq", "vkq", "dog", {"vkq": "robot"}) == "a dog"


@pytest.mark.parametrize(
    ("caption", "trigger", "is_called"),
    [
        ("art, a party", "art", True),
        ("a party", "art", False),
        ("an artist", "art", False),
        ("two vkq robots", "vkq robot", True),
        ("a <s1> dog", "<s1>", True),
        ("a dog", "", False),
    ],
)
def test_a_longer_word_does_not_call_the_trigger(caption: str, trigger: str, is_called: bool) -> None:
    assert contains_trigger(caption, trigger) == is_called

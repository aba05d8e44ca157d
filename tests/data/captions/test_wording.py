from __future__ import annotations

import pytest

from lora_studio.data.captions.wording import Wording, without_tags
from lora_studio.errors import CaptionError


@pytest.mark.parametrize(
    ("wording", "text", "caption"),
    [
        (Wording(), " a red\n ball ", "a red ball"),
        (Wording(trigger="zwx style"), "a ball", "zwx style, a ball"),
        (Wording(trigger="zwx style"), "a ball, zwx style", "a ball, zwx style"),
        (Wording(trigger="zwx", suffix=", {trigger}"), "A ball.", "A ball, zwx"),
        (Wording(prefix="a photo of", suffix="at night"), "a ball", "a photo of a ball at night"),
        (Wording(trigger="vkq", class_words="robot", prefix="{trigger} {class},"), "red", "vkq robot, red"),
        (Wording(trigger="Bella dog", class_words="dog", prefix="a {trigger} {class}"), "1", "a Bella dog 1"),
        (
            Wording(trigger="zwx robot", class_words="red robot", suffix="{trigger}  {class}"),
            "1",
            "1 zwx robot",
        ),
        (Wording(trigger="zwx"), "a\x1b[31m b\x07al\u202el\ud800\x1b]0;p\x07\u0085 c", "zwx, a ball c"),
        (Wording(blacklist="Solo, long_hair"), "1girl, solo, long hair, smile", "1girl, smile"),
        (Wording(trigger="zwx", blacklist="solo"), "solo", ""),
        (Wording(trigger="zwx"), "  ", ""),
        (Wording(), "1girl, {o}, smile", "1girl, {o}, smile"),
    ],
)
def test_the_caption_holds_what_was_wished_for(wording: Wording, text: str, caption: str) -> None:
    assert wording.apply(text) == caption


def test_a_blacklisted_tag_goes_only_as_a_whole() -> None:
    assert without_tags("solo focus, a solo dancer, solo.", "solo") == "solo focus, a solo dancer"


@pytest.mark.parametrize(
    ("suffix", "words"),
    [("{trigger}", "--trigger"), ("{class}", "--class"), ("{triger}", "did you mean 'trigger'?")],
)
def test_a_placeholder_without_words_is_one_sentence(suffix: str, words: str) -> None:
    with pytest.raises(CaptionError, match=words.replace("?", r"\?")):
        Wording(suffix=suffix).apply("a ball")

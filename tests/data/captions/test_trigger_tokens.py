"""Trigger words against CLIP's own tokenizer, whose numbers of tokens are published."""

from __future__ import annotations

import pytest
from transformers import CLIPTokenizer

from lora_studio.data.captions.trigger import known_words, read_otherwise, tokens_in_words
from lora_studio.data.doctor import ClipTokenizer
from lora_studio.families.loading import POCKET_FOLDER

CLIP = ClipTokenizer()
POCKET = CLIPTokenizer.from_pretrained(POCKET_FOLDER / "tokenizer")


def test_tokens_are_counted_and_named_once_if_tokenizers_agree() -> None:
    assert tokens_in_words("vkq robot", {"a": CLIP, "b": CLIP}) == (
        'trigger "vkq robot": 4 tokens (v, k, q, robot)'
    )
    assert tokens_in_words("sks", {"a": CLIP}) == 'trigger "sks": 1 token (sks)'
    both = tokens_in_words("sks robot", {"tokenizer": CLIP, "tokenizer_2": POCKET})
    assert both.startswith('trigger "sks robot": 2 tokens (sks, robot) by tokenizer; ')
    assert both.endswith(" robot) by tokenizer_2")


@pytest.mark.parametrize(
    ("trigger", "class_words", "known"),
    [
        ("vkq robot", "robot", None),
        ("zwx style", "", None),
        ("sks dog", "dog", {"sks": 48136}),
        ("Red dog", "dog", {"Red": 736}),
        ("emma watson", "", {"emma": 7445, "watson": 9294}),
        ("dog", "small dog", {}),
        ("dog", "", {"dog": 1929}),
        ("vkqdog", "", None),
    ],
)
def test_words_that_are_one_token_are_known_but_for_those_of_the_class(
    trigger: str, class_words: str, known: dict[str, int] | None
) -> None:
    assert known_words(trigger, class_words, {"CLIP": CLIP}) == known


def test_a_word_is_new_if_one_of_the_tokenizers_has_no_token_for_it() -> None:
    assert known_words("sks", "", {"tokenizer": CLIP, "tokenizer_2": POCKET}) is None


@pytest.mark.parametrize(
    ("trigger", "caption", "around"),
    [
        ("vkq", "a vkq, at night", None),
        ("vkq", "a vkq's hat", None),
        ("vkq", "two vkqs", "vkqs"),
        ("art", "art, a party", "party"),
        ("ohwx!", "ohwx!, a man", "ohwx!,"),
        ("zwx style", "Zwx style, zwx style", None),
        ("zwx style", "a ball", None),
    ],
)
def test_places_where_the_trigger_is_read_as_other_tokens_are_shown(
    trigger: str, caption: str, around: str | None
) -> None:
    assert read_otherwise(CLIP, trigger, caption) == around

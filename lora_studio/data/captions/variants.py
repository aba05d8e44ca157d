"""A caption's variants: what is drawn anew each time that its image is shown. Text and draws alone."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lora_studio.data.captions.wording import Wording

_WILDCARD = re.compile(r"\{([^{}]*\|[^{}]*)\}")  # innermost ones first


@dataclass(frozen=True)
class Variation:
    """What may change in a caption from one showing to the next."""

    wildcards: bool = False  # one of the words in {a|b} is chosen
    shuffle_tags: bool = False
    keep_tags: int = 0  # tags in front that are neither moved nor left out
    tag_dropout: float = 0.0  # share of the other tags that is left out


def vary(lines: Sequence[str], variation: Variation, wording: Wording, draw: random.Random) -> str:
    """One variant of a caption that is any of `lines`, with the wording's prefix and suffix around it.

    Tags are what stands between commas. One that holds the wording's trigger is never left out. Prefix and
    suffix stay where they are.
    """
    text = lines[0] if len(lines) == 1 else draw.choice(lines)
    if variation.wildcards:
        text = _choose_words(text, wording.trigger, draw)
    if tags_vary(text, variation, wording.trigger):
        text = ", ".join(_vary_tags(split_tags(text, wording.trigger), variation, wording.trigger, draw))
    text = wording.around(text)
    return _choose_words(text, wording.trigger, draw) if variation.wildcards else text


def has_wildcards(text: str) -> bool:
    """Whether the text holds {a|b}."""
    return bool(_WILDCARD.search(text))


def tags_vary(text: str, variation: Variation, trigger: str = "") -> bool:
    """Whether the text has tags that would be moved or could be left out."""
    others = split_tags(text, trigger)[variation.keep_tags :]
    return (variation.shuffle_tags and len(others) > 1) or (
        variation.tag_dropout > 0 and any(not trigger or trigger not in tag for tag in others)
    )


def split_tags(text: str, trigger: str = "") -> list[str]:
    """What stands between the commas, in their order; a trigger that holds commas is one piece."""
    mark = "\0"  # in no caption: files that hold it are not read
    pieces = (text.replace(trigger, mark) if trigger else text).split(",")
    return [" ".join(piece.split()).replace(mark, trigger) for piece in pieces if piece.strip()]


def _vary_tags(tags: list[str], variation: Variation, trigger: str, draw: random.Random) -> list[str]:
    kept, others = tags[: variation.keep_tags], tags[variation.keep_tags :]
    if variation.shuffle_tags:
        draw.shuffle(others)
    if variation.tag_dropout:
        others = [tag for tag in others if _stays(tag, variation.tag_dropout, trigger, draw)]
    return kept + others


def _stays(tag: str, dropout: float, trigger: str, draw: random.Random) -> bool:
    return (bool(trigger) and trigger in tag) or draw.random() >= dropout


def _choose_words(text: str, trigger: str, draw: random.Random) -> str:
    """The text with one of the words of each {a|b}; commas around an empty choice go with it."""
    if not has_wildcards(text):
        return text
    while has_wildcards(text):
        text = _WILDCARD.sub(lambda match: draw.choice(match[1].split("|")), text)
    return ", ".join(split_tags(text, trigger))

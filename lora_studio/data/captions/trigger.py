"""The trigger words in captions."""

from __future__ import annotations

import re
from collections.abc import Mapping

# A caption that has one of these before the trigger, and nothing or one of those behind, names nothing else.
_BEFORE = {"a", "an", "the", "this", "that", "my", "his", "her", "of"}
_BEHIND = {"in", "on", "at", "with", "without", "by", "under", "near", "and", "is", "to", "from", "of"} | {
    *("beside", "behind", "over", "as", "who", "wearing", "holding", "standing", "sitting", "looking"),
}


def without_trigger(caption: str, trigger: str, class_words: str = "") -> str | None:
    """The caption as it would be of something ordinary; None when it does not hold the trigger.

    The trigger gives way to `class_words`, or goes, together with a comma that would be left over:
    "a star, zwx style" -> "a star"; "a vkq robot at night" with "robot" -> "a robot at night". Inside of a
    longer word it stays, unless it stands nowhere else: "art, a party" -> "a party".
    """
    if not trigger or trigger not in caption:
        return None
    plain, places = _as_words(trigger).subn(lambda _: class_words, caption)
    if not places:
        plain = caption.replace(trigger, class_words)
    pieces = (" ".join(piece.split()) for piece in re.split(r"\s*,", plain))
    return ", ".join(piece for piece in pieces if piece)


def without_triggers(caption: str, own: str, class_words: str, others: Mapping[str, str]) -> str | None:
    """The caption with every trigger left out as above; None when it does not hold its `own`.

    `others`: those of other images, with the class words that each gives way to. An image of two subjects
    holds two.
    """
    if not own or own not in caption:
        return None
    triggers = {**others, own: class_words}
    for trigger in sorted(triggers, key=len, reverse=True):  # one may be a part of another
        plain = without_trigger(caption, trigger, triggers[trigger])
        caption = caption if plain is None else plain
    return caption


def contains_trigger(caption: str, trigger: str) -> bool:
    """Whether the trigger stands in the caption, and not only inside of a longer word, as "art" in "a party".

    Of a trigger of several words nothing else could be meant: "two vkq robots" calls "vkq robot".
    """
    if not trigger or trigger not in caption:
        return False
    return len(trigger.split()) > 1 or bool(_as_words(trigger).search(caption))


def _as_words(trigger: str) -> re.Pattern[str]:
    """The trigger where it is no part of a longer word."""
    before, behind = (r"(?<!\w)" if trigger[0].isalnum() else "", r"(?!\w)" if trigger[-1].isalnum() else "")
    return re.compile(before + re.escape(trigger) + behind)


def needs_class_words(caption: str, trigger: str, class_words: str = "") -> bool:
    """Whether nothing is named any more where the trigger is left out: "a photo of zwx", "a zwx on a beach".

    "a zwx style star" and "a star, zwx style" are whole without it, and so is what has `class_words` for it.
    """
    before, found, behind = caption.partition(trigger)
    if not found or class_words.strip():
        return False
    if not (before + behind).strip(" ,."):
        return True
    lead, following = re.search(r"(\w+)\s*$", before), re.match(r"\s*(\w+)", behind)
    return bool(lead and lead[1].casefold() in _BEFORE) and (
        following is None or following[1].casefold() in _BEHIND
    )

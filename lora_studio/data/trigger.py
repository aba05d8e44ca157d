"""The trigger words in captions."""

from __future__ import annotations

import re


def without_trigger(caption: str, trigger: str, class_words: str = "") -> str | None:
    """The caption as it would be of something ordinary; None when it does not hold the trigger.

    The trigger gives way to `class_words`, or goes, together with a comma that would be left over:
    "a star, zwx style" -> "a star"; "a vkq robot at night" with "robot" -> "a robot at night". Inside of a
    longer word it stays, unless it stands nowhere else: "art, a party" -> "a party".
    """
    if not trigger or trigger not in caption:
        return None
    before, behind = (r"(?<!\w)" if trigger[0].isalnum() else "", r"(?!\w)" if trigger[-1].isalnum() else "")
    plain, places = re.subn(before + re.escape(trigger) + behind, lambda _: class_words, caption)
    if not places:
        plain = caption.replace(trigger, class_words)
    pieces = (" ".join(piece.split()) for piece in re.split(r"\s*,", plain))
    return ", ".join(piece for piece in pieces if piece)

"""From what a captioner says to the caption: tags taken out, words put around it."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import NoReturn

from lora_studio.errors import CaptionError
from lora_studio.registry import did_you_mean


@dataclass(frozen=True)
class Wording:
    """The user's wishes for every caption; `{trigger}` and `{class}` may stand in prefix and suffix."""

    trigger: str = ""
    class_words: str = ""
    prefix: str = ""
    suffix: str = ""
    blacklist: str = ""  # tags, with commas between

    def apply(self, text: str) -> str:
        """ "prefix text suffix" in one line, with the trigger in front unless the caption holds it.

        Empty if nothing is left of the text. Raises CaptionError for an unknown placeholder.
        """
        text = without_tags(" ".join(text.split()), self.blacklist)
        if not text:
            return ""
        caption = self.around(text)
        if self.trigger and self.trigger not in caption:
            caption = f"{self.trigger}, {caption}"
        return caption

    def around(self, text: str) -> str:
        """ "prefix text suffix". Raises CaptionError for an unknown placeholder."""
        prefix, suffix = (self.fill(part).strip() for part in (self.prefix, self.suffix))
        if suffix.startswith(","):
            text = text.rstrip(".")  # "A dog." + ", zwx style"
        return _join(_join(prefix, text), suffix)

    def check(self) -> None:
        """Raise CaptionError for a placeholder that cannot be filled, before hours of work."""
        self.fill(self.prefix)
        self.fill(self.suffix)

    def fill(self, template: str) -> str:
        """The template with trigger and class words. Raises CaptionError if one is unknown or not given."""
        values = {"trigger": self.trigger, "class": self.class_words}

        def value(match: re.Match[str]) -> str:
            name = match[1]
            return values.get(name) or _refuse(name, template, list(values))

        return re.sub(r"\{(\w*)\}", value, template)

    def to_json(self) -> dict[str, str]:
        """The wishes that are not empty."""
        return {name: value for name, value in asdict(self).items() if value}


def without_tags(text: str, blacklist: str) -> str:
    """The text without the pieces between its commas that stand in the blacklist, whatever their case."""
    unwanted = {_tag_key(tag) for tag in blacklist.split(",")} - {""}
    if not unwanted:
        return text
    pieces = (piece.strip() for piece in text.split(","))
    return ", ".join(piece for piece in pieces if piece and _tag_key(piece) not in unwanted)


_WAYS = {  # of saying what a placeholder stands for
    "trigger": "--trigger WORDS (in a recipe: data.trigger)",
    "class": "--class WORDS (in a recipe: data.class_words)",
}


def _tag_key(tag: str) -> str:
    return tag.strip().rstrip(".").replace("_", " ").casefold()


def _join(first: str, second: str) -> str:
    """With a space between, unless one is empty or the second begins with a comma or the like."""
    return first + second if not first or not second or second[0] in ",.;:" else f"{first} {second}"


def _refuse(name: str, template: str, known: list[str]) -> NoReturn:
    if name in known:
        raise CaptionError(f'"{template}" holds {{{name}}}, so say what it stands for with {_WAYS[name]}.')
    hint = did_you_mean(name, known) or ";"
    raise CaptionError(
        f'"{template}" holds {{{name}}}, which is unknown{hint} known: {{trigger}}, {{class}}.'
    )

"""From what a captioner says to the caption that is shown: tags taken out, words put around it, variants."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from lora_studio.errors import CaptionError
from lora_studio.registry import did_you_mean
from lora_studio.text import plain_line, same_text, with_class

if TYPE_CHECKING:
    from lora_studio.recipe.data import DataConfig

_WILDCARD = re.compile(r"\{([^{}|]*+\|[^{}]*+)\}")  # innermost ones first
_DEEPEST = 20  # wildcards in wildcards; what lies deeper stays as it is
_PLACES = re.compile(r"\{trigger\}\s+\{class\}|\{(\w+)\}")
_WAYS = {  # of saying what a placeholder stands for
    "trigger": "--trigger WORDS (in a recipe: data.trigger)",
    "class": "--class WORDS (in a recipe: data.class_words)",
}


@dataclass(frozen=True)
class Wording:
    """What the user wants of every caption; `{trigger}` and `{class}` may stand in prefix and suffix."""

    trigger: str = ""
    class_words: str = ""
    prefix: str = ""
    suffix: str = ""
    blacklist: str = ""  # tags, with commas between

    def __post_init__(self) -> None:
        """Spelled as captions are when they are read."""
        for name, words in asdict(self).items():
            object.__setattr__(self, name, same_text(words))

    def apply(self, text: str) -> str:
        """ "prefix text suffix" in one line, with the trigger in front unless the caption holds it.

        Empty if nothing is left of the text. Raises CaptionError for an unknown placeholder.
        """
        text = without_tags(same_text(plain_line(text)), self.blacklist)
        if not text:
            return ""
        caption = self.around(text)
        return caption if self.trigger in caption else f"{self.trigger}, {caption}"

    def around(self, text: str) -> str:
        """ "prefix text suffix". Raises CaptionError for an unknown placeholder."""
        prefix, suffix = (self.fill(part).strip() for part in (self.prefix, self.suffix))
        if suffix.startswith(","):
            text = text.rstrip(".")  # "A dog." + ", zwx style"
        return _join(_join(prefix, text), suffix)

    def check(self) -> None:
        """Raise CaptionError for a placeholder that cannot be filled, before hours of work."""
        self.around("")

    def fill(self, template: str) -> str:
        """The template with trigger and class words. Raises CaptionError if one is unknown or not given."""
        values = {"trigger": self.trigger, "class": self.class_words}
        for name in re.findall(r"\{(\w*)\}", template):
            if name not in values:
                hint = did_you_mean(name, list(values)) or ";"
                what = f"which is unknown{hint} known: {{trigger}}, {{class}}"
                raise CaptionError(f'"{template}" holds {{{name}}}, {what}.')
            if not values[name]:
                how = f"so say what it stands for with {_WAYS[name]}"
                raise CaptionError(f'"{template}" holds {{{name}}}, {how}.')
        together = with_class(self.trigger, self.class_words)  # "Bella dog" says its class itself
        return _PLACES.sub(lambda match: values[match[1]] if match[1] else together, template)

    def to_json(self) -> dict[str, str]:
        return {name: value for name, value in asdict(self).items() if value}


def without_tags(text: str, blacklist: str) -> str:
    """The text without the pieces between its commas that stand in the blacklist, whatever their case."""
    unwanted = {_tag_key(tag) for tag in blacklist.split(",")} - {""}
    if not unwanted:
        return text
    pieces = (piece.strip() for piece in text.split(","))
    return ", ".join(piece for piece in pieces if piece and _tag_key(piece) not in unwanted)


def _tag_key(tag: str) -> str:
    return tag.strip().rstrip(".").replace("_", " ").casefold()


def _join(first: str, second: str) -> str:
    """With a space between, unless one is empty or the second begins with a comma or the like."""
    return first + second if not first or not second or second[0] in ",.;:" else f"{first} {second}"


def vary(lines: Sequence[str], config: DataConfig, wording: Wording, draw: random.Random) -> str:
    """One variant of a caption that is any of `lines`, with the wording's prefix and suffix around it.

    Tags are what stands between commas. One that holds the wording's trigger is never left out. Prefix and
    suffix stay where they are.
    """
    text = lines[0] if len(lines) == 1 else draw.choice(lines)
    if config.wildcards:
        text = _choose_words(text, wording.trigger, draw)
    if tags_vary(text, config, wording.trigger):
        trigger = wording.trigger
        tags = split_tags(text, trigger)
        kept, others = tags[: config.keep_tags], tags[config.keep_tags :]
        if config.shuffle_tags:
            draw.shuffle(others)
        if config.tag_dropout:
            dropout = config.tag_dropout
            others = [tag for tag in others if (trigger and trigger in tag) or draw.random() >= dropout]
        text = ", ".join(kept + others)
    text = wording.around(text)
    return _choose_words(text, wording.trigger, draw) if config.wildcards else text


def has_wildcards(text: str) -> bool:
    """Such as {a|b}."""
    return bool(_WILDCARD.search(text))


def tags_vary(text: str, config: DataConfig, trigger: str = "") -> bool:
    """Whether the text has tags that would be moved or could be left out."""
    others = split_tags(text, trigger)[config.keep_tags :]
    return (config.shuffle_tags and len(others) > 1) or (
        config.tag_dropout > 0 and any(not trigger or trigger not in tag for tag in others)
    )


def split_tags(text: str, trigger: str = "") -> list[str]:
    """What stands between the commas, in their order; a trigger that holds commas is one piece."""
    mark = "\0"  # in no caption: files that hold it are not read
    pieces = (text.replace(trigger, mark) if trigger else text).split(",")
    return [" ".join(piece.split()).replace(mark, trigger) for piece in pieces if piece.strip()]


def _choose_words(text: str, trigger: str, draw: random.Random) -> str:
    """The text with one of the words of each {a|b}; commas around an empty choice go with it."""
    if not has_wildcards(text):
        return text
    for _ in range(_DEEPEST):
        text = _WILDCARD.sub(lambda match: draw.choice(match[1].split("|")), text)
    return ", ".join(split_tags(text, trigger))

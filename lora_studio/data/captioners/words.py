"""What the file's name says: `red_fox-in-snow (2).jpg` is "red fox in snow"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import ClassVar

from lora_studio.data.captioners import CaptionResult, CaptionWriter, Settings
from lora_studio.data.manifest import Record

# What cameras, phones and programs put before a number; it does not say what is in the image.
_MACHINE = re.compile(
    r"(img|dsc[nf]?|pxl|mvimg|image|photo|picture|screenshot|whatsapp image|untitled|download|p)"
    r"[\s_\-]*(?=\d|$)",
    re.IGNORECASE,
)
_COUNTER = re.compile(r"(\(?\d+\)?|copy)", re.IGNORECASE)
_LONG_NUMBER = re.compile(r"\d{2,}")
_HASH = re.compile(r"[0-9a-f]{16,}", re.IGNORECASE)


class FileName(CaptionWriter):
    """Underscores and hyphens are spaces; numbers that only count go."""

    name: ClassVar[str] = "filename"

    @property
    def settings(self) -> Settings:
        return {}

    def describe(self, records: Sequence[Record]) -> list[CaptionResult]:
        """A fault if the name is a camera's or a hash."""
        return [words_of(record.name) for record in records]


def words_of(name: str) -> CaptionResult:
    stem = PurePath(name).stem
    rest = _MACHINE.sub("", stem, count=1) if _MACHINE.match(stem) else stem
    words = [word for word in re.split(r"[\s_.\-]+", rest) if word]
    while words and _COUNTER.fullmatch(words[-1]):
        words.pop()
    while words and (_LONG_NUMBER if rest == stem else _COUNTER).fullmatch(words[0]):
        words.pop(0)  # "01_fox" is the first of many; "3_foxes" are three
    letters = re.findall(r"[^\W\d]", "".join(words))
    if not letters or _HASH.fullmatch("".join(words)) or (rest != stem and len(letters) < 3):
        return CaptionResult(fault="its name does not say what is in it")
    return CaptionResult(" ".join(words))


DEFAULT = "a photo of {trigger} {class}"


class Template(CaptionWriter):
    """A sentence in which `{trigger}` and `{class}` stand for the user's words."""

    name: ClassVar[str] = "template"
    uses: ClassVar[tuple[str, ...]] = ("template",)
    batch_size = 64

    @property
    def settings(self) -> Settings:
        return {"template": self.options.template or DEFAULT}

    def describe(self, records: Sequence[Record]) -> list[CaptionResult]:
        """The same caption for each. Raises CaptionError if a placeholder is unknown or has no words."""
        text = self.options.wording.fill(self.options.template or DEFAULT)
        return [CaptionResult(text)] * len(records)

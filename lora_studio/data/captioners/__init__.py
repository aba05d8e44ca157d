"""Who says what is in an image.

Two tables: training *reads* captions (CAPTIONERS, `data.captioner` of a recipe), and `lora-studio caption`
*writes* them beside the images (CAPTION_WRITERS), where training then reads them.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import PurePath
from typing import ClassVar, Protocol

from lora_studio.data.captions.wording import Wording
from lora_studio.data.manifest import Manifest, Record
from lora_studio.errors import CaptionError
from lora_studio.registry import Registry

Settings = dict[str, str | int | float]
OPTION_NAMES = {"thresholds": "--threshold"}  # options whose name on the command line is another
# What cameras, phones and programs put before a number; it does not say what is in the image.
_WORDS = r"img|dsc[nf]?|pxl|mvimg|image|photo|picture|screenshot|whatsapp image|untitled|download|p"
_MACHINE = re.compile(rf"({_WORDS})[\s_\-]*(?=\d|$)", re.IGNORECASE)
_COUNTER = re.compile(r"(\(?\d+\)?|copy)", re.IGNORECASE)
_LONG_NUMBER = re.compile(r"\d{2,}")
_HASH = re.compile(r"[0-9a-f]{16,}", re.IGNORECASE)
DEFAULT_TEMPLATE = "a photo of {trigger} {class}"
WITHOUT_A_DOWNLOAD = "which needs no download; blip, florence, wd14 and endpoint look at the images"


class Captioner(Protocol):
    """The manifest with caption and author in every used record. Raises DatasetError if one has none."""

    def __call__(self, manifest: Manifest, *, instance_prompt: str = "") -> Manifest: ...


_READERS = {"sidecar": "lora_studio.data.captions:read_captions"}
_WRITERS = {
    "filename": f"{__name__}:FileName",
    "template": f"{__name__}:Template",
    "blip": f"{__name__}.vision_language:Blip",
    "florence": f"{__name__}.vision_language:Florence",
    "wd14": f"{__name__}.wd14:Wd14",
    "endpoint": f"{__name__}.endpoint:Endpoint",
}
CAPTIONERS: Registry[Captioner] = Registry("captioner", _READERS)
CAPTION_WRITERS: Registry[type[CaptionWriter]] = Registry("captioner", _WRITERS)


def default_writer(trigger: str, class_words: str) -> tuple[str, str]:
    """A captioner that needs nothing but what is there, and a sentence about that choice."""
    if trigger and class_words:
        return "template", f"one sentence for all images (--with template), {WITHOUT_A_DOWNLOAD}"
    return "filename", f"the words of the files' names (--with filename), {WITHOUT_A_DOWNLOAD}"


def caption_writer(name: str) -> type[CaptionWriter]:
    """The class in CAPTION_WRITERS. Raises a StudioError for a name that cannot write captions."""
    if name in CAPTIONERS.entries and name not in CAPTION_WRITERS.entries:
        raise CaptionError(
            f"{name} only reads the captions that are there, which training does by itself; "
            f"to write captions, use one of {', '.join(CAPTION_WRITERS.names())}."
        )
    return CAPTION_WRITERS[name]


@dataclass(frozen=True)
class WriterOptions:
    """What captioners can be told; each uses some of it, and what is empty is left to the captioner."""

    model: str = ""  # a folder, a hub id, or a server's name for it
    device: str = ""  # "cpu", "cuda", "cuda:1"; empty: a GPU if there is one
    prompt: str = ""  # what is asked, or how the caption begins
    template: str = ""
    url: str = ""
    max_tokens: int = 0
    batch_size: int = 0
    thresholds: Mapping[str, float] = field(default_factory=dict)  # category of tags -> least probability
    wording: Wording = field(default_factory=Wording)

    def given(self) -> list[str]:
        return [item.name for item in fields(self) if item.name != "wording" and getattr(self, item.name)]


@dataclass(frozen=True)
class CaptionResult:
    text: str = ""
    fault: str = ""  # why it cannot be said what is in the image


class CaptionWriter(ABC):
    """Says what is in images. Made quickly: models are loaded when the first images come."""

    name: ClassVar[str]
    uses: ClassVar[tuple[str, ...]] = ()  # the options that it reads, batch_size apart
    batch_size: int = 1  # images a call, when the user does not say

    def __init__(self, options: WriterOptions) -> None:
        self.options = options
        if useless := [name for name in options.given() if name not in (*self.uses, "batch_size")]:
            given = ", ".join(OPTION_NAMES.get(name, f"--{name.replace('_', '-')}") for name in useless)
            raise CaptionError(f"the captioner {self.name} does nothing with {given}; leave it out.")
        self.batch_size = options.batch_size or self.batch_size

    @property
    @abstractmethod
    def settings(self) -> Settings:
        """All that its captions depend on, apart from the image; stands in the record of every caption."""

    @abstractmethod
    def describe(self, records: Sequence[Record]) -> list[CaptionResult]:
        """A caption for each image, in their order. Raises CaptionError if it cannot work at all."""


class FileName(CaptionWriter):
    """Underscores and hyphens are spaces; numbers that only count go."""

    name = "filename"

    @property
    def settings(self) -> Settings:
        return {}

    def describe(self, records: Sequence[Record]) -> list[CaptionResult]:
        """A fault if the name is a camera's or a hash."""
        return [words_of_name(record.name) for record in records]


def words_of_name(name: str) -> CaptionResult:
    """What a file's name says: `red_fox-in-snow (2).jpg` is "red fox in snow"."""
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


class Template(CaptionWriter):
    """A sentence in which `{trigger}` and `{class}` stand for the user's words."""

    name = "template"
    uses = ("template",)
    batch_size = 64

    @property
    def settings(self) -> Settings:
        return {"template": self.options.template or DEFAULT_TEMPLATE}

    def describe(self, records: Sequence[Record]) -> list[CaptionResult]:
        """The same caption for each. Raises CaptionError if a placeholder is unknown or has no words."""
        text = self.options.wording.fill(self.options.template or DEFAULT_TEMPLATE)
        return [CaptionResult(text)] * len(records)

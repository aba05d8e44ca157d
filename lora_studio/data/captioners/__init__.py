"""Who says what is in an image.

Two tables: training *reads* captions (CAPTIONERS, `data.captioner` of a recipe), and `lora-studio caption`
*writes* them beside the images (CAPTION_WRITERS), where training then reads them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar, Protocol

from lora_studio.data.captions.wording import Wording
from lora_studio.data.manifest import Manifest, Record
from lora_studio.errors import CaptionError
from lora_studio.registry import Registry

Settings = dict[str, str | int | float]


class Captioner(Protocol):
    """The manifest with caption and author in every used record. Raises DatasetError if one has none."""

    def __call__(self, manifest: Manifest, *, instance_prompt: str = "") -> Manifest: ...


CAPTIONERS: Registry[Captioner] = Registry(
    "captioner", {"sidecar": "lora_studio.data.captions:read_captions"}
)

CAPTION_WRITERS: Registry[type[CaptionWriter]] = Registry(
    "captioner",
    {
        "filename": "lora_studio.data.captioners.words:FileName",
        "template": "lora_studio.data.captioners.words:Template",
        "blip": "lora_studio.data.captioners.vision_language:Blip",
        "florence": "lora_studio.data.captioners.vision_language:Florence",
        "wd14": "lora_studio.data.captioners.wd14:Wd14",
        "endpoint": "lora_studio.data.captioners.endpoint:Endpoint",
    },
)


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
    """What is in an image, or why that cannot be said."""

    text: str = ""
    fault: str = ""


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


OPTION_NAMES = {"thresholds": "--threshold"}  # options whose name on the command line is another

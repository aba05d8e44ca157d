"""The seam between writing captions and whoever says what they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar

from lora_studio.data.captions.wording import Wording
from lora_studio.data.manifest import Record
from lora_studio.errors import CaptionError


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
        """The names of the options that are not empty."""
        return [item.name for item in fields(self) if item.name != "wording" and getattr(self, item.name)]


@dataclass(frozen=True)
class CaptionResult:
    """What is in an image, or why nobody can say."""

    text: str = ""
    fault: str = ""


class CaptionWriter(ABC):
    """Says what is in images. Made quickly: models are loaded when the first images come."""

    name: ClassVar[str]
    uses: ClassVar[tuple[str, ...]] = ()
    """The options that it reads, batch_size apart."""
    batch_size: int = 1
    """Images a call, when the user does not say."""

    def __init__(self, options: WriterOptions) -> None:
        self.options = options
        if useless := [name for name in options.given() if name not in (*self.uses, "batch_size")]:
            given = ", ".join(OPTION_NAMES.get(name, f"--{name.replace('_', '-')}") for name in useless)
            raise CaptionError(f"the captioner {self.name} does nothing with {given}; leave it out.")
        self.batch_size = options.batch_size or self.batch_size

    @property
    @abstractmethod
    def settings(self) -> dict[str, str | int | float]:
        """All that its answers depend on, apart from the image; stands in the record of every caption."""

    @abstractmethod
    def describe(self, records: Sequence[Record]) -> list[CaptionResult]:
        """An answer for each image, in their order. Raises CaptionError if it cannot work at all."""


OPTION_NAMES = {"thresholds": "--threshold"}
"""Options whose name on the command line is another."""

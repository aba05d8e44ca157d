"""The same words for every picture: "a photo of {trigger} {class}"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from lora_studio.data.captioners.base import Answer, CaptionWriter
from lora_studio.data.manifest import Record

DEFAULT = "a photo of {trigger} {class}"


class Template(CaptionWriter):
    """A sentence in which `{trigger}` and `{class}` stand for the user's words."""

    name: ClassVar[str] = "template"
    uses: ClassVar[tuple[str, ...]] = ("template",)
    batch_size = 64

    @property
    def settings(self) -> dict[str, str | int | float]:
        """The sentence; its words are part of the wording."""
        return {"template": self.options.template or DEFAULT}

    def describe(self, records: Sequence[Record]) -> list[Answer]:
        """The same answer for each. Raises CaptionError if a placeholder is unknown or has no words."""
        text = self.options.wording.fill(self.options.template or DEFAULT)
        return [Answer(text)] * len(records)

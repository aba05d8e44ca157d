"""Who says what is in an image.

Two tables: training *reads* captions (CAPTIONERS, `data.captioner` of a recipe), and `lora-studio caption`
*writes* them beside the images (CAPTION_WRITERS), where training then reads them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from lora_studio.errors import CaptionError
from lora_studio.registry import Registry

if TYPE_CHECKING:
    from lora_studio.data.captioners.base import CaptionWriter
    from lora_studio.data.manifest import Manifest


class Captioner(Protocol):
    """The manifest with caption and author in every used record. Raises DatasetError if one has none."""

    def __call__(self, manifest: Manifest, *, instance_prompt: str = "") -> Manifest: ...


CAPTIONERS: Registry[Captioner] = Registry(
    "captioner", {"sidecar": "lora_studio.data.captioners.sidecar:read_captions"}
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

"""Who says what is in a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from lora_studio.registry import Registry

if TYPE_CHECKING:
    from lora_studio.data.manifest import Manifest


class Captioner(Protocol):
    """The manifest with caption and author in every used record. Raises DatasetError if one has none."""

    def __call__(self, manifest: Manifest, *, instance_prompt: str = "") -> Manifest: ...


CAPTIONERS: Registry[Captioner] = Registry(
    "captioner", {"sidecar": "lora_studio.data.captioners.sidecar:read_captions"}
)

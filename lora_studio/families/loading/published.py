"""A published base without a file of it: its configuration ships with the package."""

from __future__ import annotations

from lora_studio.families import FAMILIES
from lora_studio.families.base import ModelFamily
from lora_studio.families.loading.single_file import empty_part
from lora_studio.families.original.configurations import tokenizers_for
from lora_studio.families.original.published import PUBLISHED, published_configurations


def published_base(model: str) -> ModelFamily | None:
    """The base with that id on the hub, its networks of shapes alone; None for one that is not known."""
    if (base := PUBLISHED.get(model)) is None:
        return None
    configurations = published_configurations(base)
    names = ("unet", "vae", *(encoder.part for encoder in base.kind.text_encoders))
    parts = {name: empty_part(name, configurations[name]) for name in names}
    family = next(FAMILIES[one] for one in FAMILIES.names() if FAMILIES[one].recognises(configurations))
    tokenizers = tokenizers_for(base.kind, configurations)
    return family(parts, tokenizers, source="", scheduler=configurations["scheduler"])

"""Stable Diffusion 1.x, and miniatures with the same module tree such as the pocket base."""

from __future__ import annotations

from typing import ClassVar

from lora_studio.families.base import FileTraits
from lora_studio.families.original.kinds import SD1, Kind
from lora_studio.families.stable_diffusion import StableDiffusion


class StableDiffusion15(StableDiffusion):
    """Projections by convolution; epsilon, or v in some fine-tuned ones."""

    card_version = "SD1"
    file_versions = ("sd_v1", "sd_v1_v")
    kind: ClassVar[Kind] = SD1

    @classmethod
    def recognises(cls, configurations: dict[str, dict[str, object]]) -> bool:
        """Convolutional projections and no added embeddings."""
        unet = configurations.get("unet", {})
        return not unet.get("use_linear_projection") and not unet.get("addition_embed_type")

    @property
    def traits(self) -> FileTraits:
        """SD1, as every UI knows it."""
        if self.schedule.prediction == "v_prediction":
            return FileTraits("sd_v1_v", False, "stable-diffusion-v1/lora", "v")
        return FileTraits("sd_v1", False, "stable-diffusion-v1/lora", "epsilon")

"""Stable Diffusion 2.0 and 2.1: the bases of 512 pixels predict epsilon, those of 768 predict v."""

from __future__ import annotations

from typing import ClassVar

from lora_studio.families.base import FileTraits
from lora_studio.families.original.kinds import SD2, Kind
from lora_studio.families.stable_diffusion import StableDiffusion


class StableDiffusion2(StableDiffusion):
    """Linear projections, and OpenCLIP-H without its last layer for a text encoder."""

    card_version = "SD2"
    file_versions = ("sd_v2", "sd_v2_v")
    kind: ClassVar[Kind] = SD2

    @classmethod
    def recognises(cls, configurations: dict[str, dict[str, object]]) -> bool:
        """Linear projections and no added embeddings."""
        unet = configurations.get("unet", {})
        return bool(unet.get("use_linear_projection")) and not unet.get("addition_embed_type")

    @property
    def traits(self) -> FileTraits:
        """SD2, in UIs' words a "768-v" one whatever its size if it predicts v."""
        if self.schedule.prediction == "v_prediction":
            return FileTraits("sd_v2_v", True, "stable-diffusion-v2-768-v/lora", "v")
        return FileTraits("sd_v2", True, "stable-diffusion-v2-512/lora", "epsilon")

"""BLIP, arXiv 2201.12086: short sentences in plain words, small enough for a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lora_studio.data.captioners.seeing import SeeingModel

if TYPE_CHECKING:
    import torch
    from PIL import Image


class Blip(SeeingModel):
    """One sentence; with a prompt it begins with these words."""

    name: ClassVar[str] = "blip"
    model_type: ClassVar[str] = "blip"
    model_class: ClassVar[str] = "BlipForConditionalGeneration"
    processor_class: ClassVar[str] = "BlipProcessor"
    default_model: ClassVar[str] = "Salesforce/blip-image-captioning-large"
    default_max_tokens: ClassVar[int] = 50

    def inputs(self, pictures: list[Image.Image]) -> dict[str, torch.Tensor]:
        """pixel_values [B, 3, 384, 384] and, with a prompt, its ids [B, L]."""
        words = {"text": [self.prompt] * len(pictures)} if self.prompt else {}
        return dict(self.processor(images=pictures, return_tensors="pt", **words))

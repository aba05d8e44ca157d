"""Florence-2, arXiv 2311.06242: captions of three lengths."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lora_studio.data.captioners.base import WriterOptions
from lora_studio.data.captioners.seeing import SeeingModel
from lora_studio.errors import CaptionError
from lora_studio.registry import did_you_mean

if TYPE_CHECKING:
    import torch
    from PIL import Image

TASKS = {
    "short": "<CAPTION>",
    "detailed": "<DETAILED_CAPTION>",
    "paragraph": "<MORE_DETAILED_CAPTION>",  # often beyond the 77 tokens of CLIP
}


class Florence(SeeingModel):
    """The prompt is one of the lengths; the model knows no other questions about a whole picture."""

    name: ClassVar[str] = "florence"
    model_type: ClassVar[str] = "florence2"
    model_class: ClassVar[str] = "Florence2ForConditionalGeneration"
    processor_class: ClassVar[str] = "Florence2Processor"
    default_model: ClassVar[str] = "florence-community/Florence-2-base"  # microsoft's own comes with code
    default_max_tokens: ClassVar[int] = 256

    def __init__(self, options: WriterOptions) -> None:
        super().__init__(options)
        if self.prompt not in TASKS:
            hint = did_you_mean(self.prompt, list(TASKS)) or ";"
            raise CaptionError(
                f"florence does not know --prompt {self.prompt!r}{hint} use one of {', '.join(TASKS)}."
            )

    @property
    def prompt(self) -> str:
        """short, detailed or paragraph."""
        return self.options.prompt or "detailed"

    def inputs(self, pictures: list[Image.Image]) -> dict[str, torch.Tensor]:
        """pixel_values [B, 3, 768, 768] and the ids of the question [B, L]."""
        texts = [TASKS[self.prompt]] * len(pictures)
        return dict(self.processor(images=pictures, text=texts, return_tensors="pt"))

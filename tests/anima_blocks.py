"""diffusers' own blocks for Anima, asked as its pipelines are, without a line of ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, ModularPipeline
from diffusers.guiders import ClassifierFreeGuidance
from torch import Tensor


@contextmanager
def torchvision_there() -> Iterator[None]:
    """What diffusers' Cosmos asks torchvision for, which need not be installed: sides in whole numbers."""
    made = SimpleNamespace(
        functional=SimpleNamespace(
            resize=lambda mask, sides, interpolation: F.interpolate(mask, sides, mode=interpolation)
        ),
        InterpolationMode=SimpleNamespace(NEAREST="nearest"),
    )
    with patch("diffusers.models.transformers.transformer_cosmos.transforms", made, create=True):
        yield


class AnimaBlocks:
    """A folder's pipeline of blocks."""

    def __init__(self, folder: Path) -> None:
        self.blocks: Any = ModularPipeline.from_pretrained(folder, local_files_only=True)
        self.blocks.load_components(dtype=torch.float32)
        self.blocks.set_progress_bar_config(disable=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.blocks, name)

    def __call__(
        self,
        *,
        prompt: str | Sequence[str],
        guidance_scale: float,
        negative_prompt: str = "",
        output_type: str = "pil",
        **given: Any,
    ) -> SimpleNamespace:
        self.blocks.update_components(guider=ClassifierFreeGuidance(guidance_scale=guidance_scale))
        kind = "pt" if output_type == "latent" else output_type
        prompts = {"prompt": prompt, "negative_prompt": negative_prompt}
        with torchvision_there():
            images = self.blocks(**prompts, **given, output_type=kind, output="images")
        return SimpleNamespace(images=images)

    def text(self, caption: str) -> Tensor:
        """[512, D], as its blocks hand it on, and how many of these are tokens."""
        from diffusers.modular_pipelines.anima.before_denoise import AnimaTextConditioningStep
        from diffusers.modular_pipelines.anima.encoders import AnimaTextEncoderStep

        with torch.no_grad():
            read = AnimaTextEncoderStep.encode_prompt(
                self.blocks, [caption], prepare_unconditional_embeds=False, device=torch.device("cpu")
            )
            found: Tensor = AnimaTextConditioningStep._condition_prompt_embeds(
                self.blocks,
                **{name: one for name, one in read.items() if not name.startswith("negative_")},
                device=torch.device("cpu"),
                conditioning_dtype=self.blocks.text_conditioner.dtype,
                output_dtype=torch.float32,
            )
        assert found.shape[1] == 512
        length = int(read["t5_attention_mask"].sum())
        assert not found[0, length:].any()
        return found[0, :length]


def open_pipeline(folder: Path) -> Any:
    """In float32, of blocks or not."""
    if (folder / "modular_model_index.json").is_file():
        return AnimaBlocks(folder)
    return DiffusionPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)

"""A family that does not exist: SD1's UNet on 16 latent channels that predicts v, and a T5 for its text.

All that the trainer has to know of it stands in this file; `families/test_dropping_in.py` adds its line to
the table of families.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from tiny import NOISE, flow_vae, t5_encoder, t5_tokenizer
from torch import Tensor

from lora_studio.families.base import Conditioning, FileTraits, SameInput
from lora_studio.families.unet import CROSS_ATTENTION, SELF_ATTENTION, StableDiffusion15

CHANNELS = 16


class MadeUpUNet(StableDiffusion15):
    """Its text is never cut into windows, and stays as it is; masked tokens are zeros."""

    card_version = "Made-up"
    file_traits: ClassVar[Mapping[str, FileTraits]] = {
        "v_prediction": FileTraits("made_up", False, "made-up/lora", "v", "a test")
    }
    embedding_keys: ClassVar[Mapping[str, str]] = {}
    most_chunks: ClassVar[int] = 1

    @classmethod
    def recognises(cls, configurations: dict[str, dict[str, object]]) -> bool:
        return configurations.get("unet", {}).get("in_channels") == CHANNELS

    @classmethod
    def refusal(cls, configurations: Mapping[str, Mapping[str, object]]) -> str:
        return ""

    @property
    def targets(self) -> dict[str, tuple[str, ...]]:
        return {"unet": super().targets["unet"]}

    @property
    def together(self) -> dict[str, tuple[SameInput, ...]]:
        return {"unet": (SameInput(SELF_ATTENTION), SameInput(CROSS_ATTENTION, "encoder_hidden_states"))}

    @torch.no_grad()
    def encode_text(self, captions: list[str], *, like: Sequence[str] = ()) -> Conditioning:
        """{"text": [B, 77, D]}"""
        given = self.tokenizers["tokenizer"](
            captions, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
        ).to(self.device)
        return {"text": self.parts["text_encoder"](given["input_ids"]).last_hidden_state}

    def join(self, rows: Sequence[Conditioning], empty: Conditioning) -> Conditioning:
        return {"text": torch.cat([row["text"] for row in rows])}

    def canonical_path(self, part: str, path: str) -> str:
        return path


def base_made_up(folder: Path) -> Path:
    """A miniature as a diffusers folder."""
    torch.manual_seed(11)
    levels: dict[str, Any] = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (16, 24),
    }
    sizes = {"attention_head_dim": 2, "cross_attention_dim": 24, "norm_num_groups": 8, "sample_size": 32}
    channels = {"in_channels": CHANNELS, "out_channels": CHANNELS, "layers_per_block": 1}
    tokenizer = t5_tokenizer()
    tokenizer.model_max_length = 77
    pipeline: DiffusionPipeline = StableDiffusionPipeline(
        vae=flow_vae(shift=None),
        text_encoder=t5_encoder(),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(**levels, **sizes, **channels),
        scheduler=DDIMScheduler(**NOISE, prediction_type="v_prediction", clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def plain_prediction(base: Path, latents: Tensor, timestep: Tensor, captions: list[str]) -> Tensor:
    """diffusers' own, without a line of ours."""
    pipeline = StableDiffusionPipeline.from_pretrained(base, safety_checker=None, local_files_only=True)
    text = pipeline.encode_prompt(captions, "cpu", 1, False)[0]
    with torch.no_grad():
        found: Tensor = pipeline.unet(latents, timestep, text).sample
    return found

"""Stable Diffusion XL (arXiv 2307.01952): two text encoders, and a UNet that is told an image's geometry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch

from lora_studio.families.base import Conditioning, FileTraits
from lora_studio.families.layer_names.spellings import TWO_ENCODERS, KohyaLayout
from lora_studio.families.original import SDXL, BaseKind
from lora_studio.families.text_chunks import clip_ids
from lora_studio.families.unet import ATTENTION, FEED_FORWARD, TEXT_LAYERS, StableDiffusion
from lora_studio.processes import to_device

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor
    from transformers import CLIPTextModel

ENCODERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}


class StableDiffusionXL(StableDiffusion):
    """CLIP-L and OpenCLIP-G, each one's penultimate layer, and the latter's pooled output."""

    card_version = "SDXL"
    file_traits: ClassVar[Mapping[str, FileTraits]] = {  # UIs know no name of its own for one that predicts v
        "epsilon": FileTraits("sdxl_base_v1-0", False, "stable-diffusion-xl-v1-base/lora", "epsilon"),
        "v_prediction": FileTraits("sdxl_base_v1-0", False, "stable-diffusion-xl-v1-base/lora", "v"),
    }

    needs: ClassVar[tuple[str, ...]] = ("unet", "vae", *ENCODERS, *ENCODERS.values(), "scheduler")
    layout: ClassVar[KohyaLayout] = TWO_ENCODERS
    kind: ClassVar[BaseKind] = SDXL

    embedding_keys: ClassVar[Mapping[str, str]] = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}

    # B-LoRA, arXiv 2403.14572, sec. 4
    block_choices: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
        "content": {"unet": ("up_blocks.0.attentions.0.*",)},
        "style": {"unet": ("up_blocks.0.attentions.1.*",)},
    }

    @property
    def targets(self) -> dict[str, tuple[str, ...]]:
        """Attention and feed-forward, but not CLIP-L's last layer: nothing reads what comes out of it."""
        encoder: CLIPTextModel = self.parts["text_encoder"]
        layers = range(encoder.config.num_hidden_layers - 1)
        modules = [f"self_attn.{name}" for name in TEXT_LAYERS[:4]] + [f"mlp.{n}" for n in TEXT_LAYERS[4:]]
        read = tuple(f"layers.{layer}.{module}" for layer in layers for module in modules)
        return {"unet": ATTENTION + FEED_FORWARD, "text_encoder": read, "text_encoder_2": TEXT_LAYERS}

    @property
    def unread(self) -> dict[str, tuple[str, ...]]:
        """CLIP-L's last layer and what follows it."""
        encoder: CLIPTextModel = self.parts["text_encoder"]
        last = f"text_model.encoder.layers.{encoder.config.num_hidden_layers - 1}."
        return {"text_encoder": (last, "text_model.final_layer_norm")}

    def encode_text(self, captions: list[str], *, like: Sequence[str] = ()) -> Conditioning:
        """{"text": [B, L, D1 + D2], "pooled": [B, P]}; L is 77 for each window that is needed.

        The hidden states before each encoder's last layer, side by side; pooled is the first window's, as in
        A1111 and ComfyUI.
        """
        states = []
        for part, tokenizer in ENCODERS.items():
            encoder = self.parts[part]
            ids = clip_ids(self.tokenizers[tokenizer], captions, max_chunks=self.max_chunks, like=like)
            windows = to_device(ids.flatten(0, 1), next(encoder.parameters()).device)
            output = encoder(windows, output_hidden_states=True)
            states.append(output.hidden_states[-2].unflatten(0, ids.shape[:2]).flatten(1, 2))
        pooled = output.text_embeds.unflatten(0, ids.shape[:2])[:, 0]
        return {"text": torch.cat(states, dim=-1), "pooled": pooled}

    def denoise(
        self, latents: Tensor, timestep: Tensor, conditioning: Conditioning, geometry: Tensor
    ) -> Tensor:
        """The UNet's prediction; geometry is its time ids as they are, in float32: bfloat16 rounds 1023."""
        unet = self.parts["unet"]
        dtype = next(unet.parameters()).dtype
        added = {"text_embeds": conditioning["pooled"].to(dtype), "time_ids": geometry}
        text = conditioning["text"].to(dtype)
        return unet(latents.to(dtype), timestep, text, added_cond_kwargs=added).sample

    def pipeline(self) -> DiffusionPipeline:
        """diffusers' own, with the base's parts and no invisible watermark in its images."""
        from diffusers import StableDiffusionXLPipeline

        parts = {name: self.parts[name] for name in ("vae", "unet", *ENCODERS)}
        tokenizers = {name: self.tokenizers[name] for name in ENCODERS.values()}
        pipeline = StableDiffusionXLPipeline(
            **parts, **tokenizers, scheduler=self.schedule.ddim(), add_watermarker=False
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

"""The published bases without weights: the meta device has their shapes alone."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.adapters.rules import AdapterOptions
from lora_studio.families.base import ModelFamily
from lora_studio.families.unet import StableDiffusion2, StableDiffusion15
from lora_studio.families.unet.sdxl import StableDiffusionXL

OPTIONS = AdapterOptions("lora", rank=4, alpha=4.0, seed=0)


def text_config(*, width: int, layers: int, projection: int = 512) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        projection_dim=projection,
    )


def full_size_family() -> StableDiffusion15:
    """SD1.5 without weights: the meta device has shapes alone."""
    with torch.device("meta"):
        parts: dict[str, nn.Module] = {
            "unet": UNet2DConditionModel(cross_attention_dim=768),
            "text_encoder": CLIPTextModel(text_config(width=768, layers=12)),
        }
    return StableDiffusion15(parts, {}, source="")


def full_size_sd2() -> StableDiffusion2:
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
        )
        parts: dict[str, nn.Module] = {
            "unet": unet,
            "text_encoder": CLIPTextModel(text_config(width=1024, layers=23)),
        }
    return StableDiffusion2(parts, {}, source="")


def full_size_sdxl() -> StableDiffusionXL:
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(320, 640, 1280),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
        second = text_config(width=1280, layers=32, projection=1280)
        parts: dict[str, nn.Module] = {
            "unet": unet,
            "text_encoder": CLIPTextModel(text_config(width=768, layers=12)),
            "text_encoder_2": CLIPTextModelWithProjection(second),
        }
    return StableDiffusionXL(parts, {}, source="")


def keys_and_shapes(family: ModelFamily, adapters: AdapterSet) -> dict[str, str]:
    written = {}
    for layer in adapters.layers:
        name = family.ui_name(layer.part, layer.path)
        written[f"{name}.lora_down.weight"] = str(tuple(layer.tensors["down"].shape))
        written[f"{name}.lora_up.weight"] = str(tuple(layer.tensors["up"].shape))
        written[f"{name}.alpha"] = "()"
    return written

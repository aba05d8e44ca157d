"""UNets that no Stable Diffusion has which a LoRA can be trained for: inpainting, the refiner and others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

Configuration = Mapping[str, object]
CHANNELS = 4
INPAINTING_CHANNELS = 9  # latents, masked latents and a mask


def unet_refusal(configurations: Mapping[str, Configuration]) -> str:
    """Why the parts with these configurations cannot be trained; empty if nothing speaks against them."""
    unet = configurations["unet"]
    channels = unet.get("in_channels")
    if channels == INPAINTING_CHANNELS:
        return (
            "it is an inpainting model: its UNet takes 9 channels instead of 4; train on the model that it "
            "was made from, a LoRA for that works in both"
        )
    if channels != CHANNELS:
        return f"its UNet takes {channels} channels; those of Stable Diffusion 1, 2 and XL take {CHANNELS}"
    if _is_refiner(unet, configurations):
        return "it is the refiner of SDXL, for which no UI loads a LoRA; train on the SDXL base"
    other = [name for name in ("class_embed_type", "encoder_hid_dim_type") if unet.get(name)]
    if other or unet.get("addition_embed_type") not in (None, "text_time"):
        kind = f"{other[0]} = {unet[other[0]]!r}" if other else f"{unet.get('addition_embed_type')!r} added"
        return f"its UNet is of another kind ({kind})"
    return _text_refusal(unet, configurations)


def _is_refiner(unet: Configuration, configurations: Mapping[str, Configuration]) -> bool:
    """The refiner has no first text encoder, and five numbers of geometry instead of six."""
    if unet.get("addition_embed_type") != "text_time":
        return False
    second = configurations.get("text_encoder_2", {})
    added = cast(int, unet.get("projection_class_embeddings_input_dim") or 0)
    pooled, per_number = second.get("projection_dim"), unet.get("addition_time_embed_dim")
    return isinstance(pooled, int) and isinstance(per_number, int) and added == pooled + 5 * per_number


def _text_refusal(unet: Configuration, configurations: Mapping[str, Configuration]) -> str:
    encoders = {name: c for name, c in configurations.items() if name.startswith("text_encoder")}
    foreign = [c.get("model_type") for c in encoders.values() if "clip" not in str(c.get("model_type"))]
    if foreign:
        return f"its text encoder is of the kind {foreign[0]!r}, not CLIP"
    expected = 2 if unet.get("addition_embed_type") else 1
    given = sum(cast(int, c.get("hidden_size", 0)) for c in encoders.values())
    taken = unet.get("cross_attention_dim")
    if len(encoders) == expected and isinstance(taken, int) and given != taken:
        return (
            f"its text encoders give {given} numbers a token, but its UNet takes {taken}: they are parts of "
            "different models"
        )
    return ""

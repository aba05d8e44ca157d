"""File names and shapes against the list of what UIs expect, on SD1.5's own configuration."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from lora_studio.adapters.base import AdapterOptions, inject
from lora_studio.export import kohya
from lora_studio.families.sd15 import StableDiffusion15

REFERENCE = Path(__file__).parent.parent / "reference" / "sd15_linear.txt"


def full_size_family() -> StableDiffusion15:
    """SD1.5 without weights: the meta device has shapes alone."""
    text = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
    )
    with torch.device("meta"):
        parts: dict[str, nn.Module] = {
            "unet": UNet2DConditionModel(cross_attention_dim=768),
            "text_encoder": CLIPTextModel(text),
        }
    return StableDiffusion15(parts, {}, source="")


def test_keys_and_shapes_equal_the_reference_list_for_sd15() -> None:
    family = full_size_family()
    options = AdapterOptions("lora", rank=4, alpha=4.0, seed=0)
    adapters = inject(family.parts, family.targets, options, canonical_path=family.canonical_path)
    written = {}
    for layer in adapters.layers:
        name = family.ui_name(layer.part, layer.path)
        written[f"{name}.lora_down.weight"] = str(tuple(layer.down.shape))
        written[f"{name}.lora_up.weight"] = str(tuple(layer.up.shape))
        written[f"{name}.alpha"] = "()"
    expected = dict(line.split("\t") for line in REFERENCE.read_text("utf-8").splitlines())
    assert written == expected


def test_alpha_is_a_number_without_dimensions_and_keeps_the_scale() -> None:
    model = nn.ModuleDict({"to_q": nn.Linear(4, 4)})
    options = AdapterOptions("lora", rank=2, alpha=3.0, seed=0)
    adapters = inject({"unet": model}, {"unet": ("to_q",)}, options, canonical_path=lambda part, path: path)
    tensors = kohya.tensors(full_size_family(), adapters)
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == {
        "lora_unet_to_q.lora_down.weight": (2, 4),
        "lora_unet_to_q.lora_up.weight": (4, 2),
        "lora_unet_to_q.alpha": (),
    }
    assert tensors["lora_unet_to_q.alpha"].item() == 3.0

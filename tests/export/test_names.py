"""File names and shapes against the lists of what UIs expect, on the bases' own configurations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lora_studio.adapters.base import AdapterOptions, AdapterSet, inject
from lora_studio.adapters.rules import Rule
from lora_studio.export import kohya
from lora_studio.families.base import ModelFamily
from lora_studio.families.layer_names import layout_of, place_of
from lora_studio.families.original_names import original_path
from lora_studio.families.sd2 import StableDiffusion2
from lora_studio.families.sd15 import StableDiffusion15
from lora_studio.families.sdxl import StableDiffusionXL

REFERENCE = Path(__file__).parent.parent / "reference"
OPTIONS = AdapterOptions("lora", rank=4, alpha=4.0, seed=0)


def reference(name: str) -> dict[str, str]:
    """Every key of a full file and the shape of its tensor, at rank 4."""
    lines = (REFERENCE / f"{name}.txt").read_text("utf-8").splitlines()
    return dict(line.split("\t") for line in lines)


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


SIZES = {
    "sd15_linear": full_size_family,
    "sd15_conv": full_size_family,
    "sd2_linear": full_size_sd2,
    "sd2_conv": full_size_sd2,
    "sdxl_linear": full_size_sdxl,
    "sdxl_conv": full_size_sdxl,
}
UNREAD = "lora_te1_text_model_encoder_layers_11_"
"""SDXL's first text encoder's last layer: the lists have it, but nothing reads it, so it cannot learn."""


@pytest.mark.parametrize("name", SIZES)
def test_keys_and_shapes_equal_the_reference_list(name: str) -> None:
    family = SIZES[name]()
    targets = family.targets
    if name.endswith("conv"):
        targets = targets | {"unet": targets["unet"] + family.convolutions["unet"]}
    adapters = inject(family.parts, targets, OPTIONS, canonical_path=family.canonical_path)
    expected = reference(name)
    if "sdxl" in name:
        expected = {key: shape for key, shape in expected.items() if not key.startswith(UNREAD)}
    assert keys_and_shapes(family, adapters) == expected


@pytest.mark.parametrize("name", SIZES)
def test_every_layer_of_the_lists_is_told_without_the_base_and_named_as_before(name: str) -> None:
    """From a UI's name to its place and back, through PEFT's dotted name; the kind of base is recognised."""
    names = {key.partition(".")[0] for key in reference(name)}
    places = {one: place_of(one) for one in names}
    layout = layout_of([place for place in places.values() if place])
    family = SIZES[name]()
    for one, place in places.items():
        assert place is not None and layout.name(place) == one == family.ui_name(*place)
        assert place_of(f"{place.part}.{place.path}") == place
    known = {
        (part, family.canonical_path(part, path))
        for part in family.parts
        for path, _ in family.parts[part].named_modules()
    }
    assert set(places.values()) <= known


def test_alpha_over_rank_is_the_scale_of_every_layer() -> None:
    """One alpha for all; what a layer's own rank and alpha are beside that goes into `up`."""
    model = nn.ModuleDict({"attn2": nn.ModuleDict({"to_k": nn.Linear(4, 4), "to_v": nn.Linear(4, 4)})})
    options = AdapterOptions("lora", 2, 3.0, 0, rules=[Rule("*to_v", rank=1, alpha=7.0)])
    adapters = inject(
        {"unet": model}, {"unet": ("to_k", "to_v")}, options, canonical_path=lambda part, path: path
    )
    for layer in adapters.layers:
        layer.tensors["up"].data.fill_(0.5)
    tensors = kohya.tensors(full_size_family(), adapters)
    for layer, scale in zip(adapters.layers, (3.0 / 2, 7.0 / 1), strict=True):
        name = f"lora_unet_{layer.path.replace('.', '_')}"
        down, up = (tensors[f"{name}.lora_{end}.weight"] for end in ("down", "up"))
        alpha = tensors[f"{name}.alpha"]
        assert alpha.ndim == 0 and alpha.is_floating_point()
        live = scale * layer.tensors["up"].detach() @ layer.tensors["down"].detach()
        assert torch.allclose(alpha / len(down) * up @ down, live, rtol=1e-6)


def test_the_original_paths_are_those_of_diffusers_own_conversion() -> None:
    """Every module of the UNet with weights, also those that no adapter is put into."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    unet = full_size_sdxl().parts["unet"]
    numbers = {name: torch.tensor(number) for number, name in enumerate(unet.state_dict())}
    original = {}
    for name, number in numbers.items():
        path, _, end = name.rpartition(".")
        original[f"model.diffusion_model.{original_path(path, layers_per_block=2)}.{end}"] = number
    assert convert_ldm_unet_checkpoint(original, dict(unet.config)) == numbers


def test_alpha_is_a_number_without_dimensions_and_keeps_the_scale() -> None:
    model = nn.ModuleDict({"attn2": nn.ModuleDict({"to_k": nn.Linear(4, 4)})})
    options = AdapterOptions("lora", rank=2, alpha=3.0, seed=0)
    adapters = inject({"unet": model}, {"unet": ("to_k",)}, options, canonical_path=lambda part, path: path)
    tensors = kohya.tensors(full_size_family(), adapters)
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == {
        "lora_unet_attn2_to_k.lora_down.weight": (2, 4),
        "lora_unet_attn2_to_k.lora_up.weight": (4, 2),
        "lora_unet_attn2_to_k.alpha": (),
    }
    assert tensors["lora_unet_attn2_to_k.alpha"].item() == 3.0

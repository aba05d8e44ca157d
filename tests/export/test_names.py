"""File names and shapes against the lists of what UIs expect, on the bases' own configurations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from full_size import OPTIONS, full_size_family, full_size_sd2, full_size_sdxl, keys_and_shapes
from torch import nn

from lora_studio.adapters.inject import inject
from lora_studio.adapters.rules import AdapterOptions
from lora_studio.export import kohya
from lora_studio.families.layer_names.spellings import layout_of, original_path, place_of
from lora_studio.recipe.adapter import LayersConfig

REFERENCE = Path(__file__).parent.parent / "reference"


def reference(name: str) -> dict[str, str]:
    """Every key of a full file and the shape of its tensor, at rank 4."""
    lines = (REFERENCE / f"{name}.txt").read_text("utf-8").splitlines()
    return dict(line.split("\t") for line in lines)


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
    options = AdapterOptions("lora", 2, 3.0, 0, rules=[LayersConfig(pattern="*to_v", rank=1, alpha=7.0)])
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

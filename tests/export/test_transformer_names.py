"""File names and shapes of the transformer families at published sizes, against lists of what UIs expect."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from families.test_transformer_layouts import SPELLINGS, layout_of
from published_transformers import BASES, listed, published, reference

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.adapters.inject import inject
from lora_studio.adapters.rules import AdapterOptions
from lora_studio.export import kohya
from lora_studio.families import FAMILIES
from lora_studio.families.base import ModelFamily
from lora_studio.families.layer_names.spellings import LayerPlace
from lora_studio.families.layer_names.transformers import DIFFUSERS
from lora_studio.lora_file.factors import PlainLora
from lora_studio.lora_file.forms import LayerSizes, spell_form

TRAINED = {
    **{"flux1": "flux1", "chroma": "chroma", "z_image": "z_image", "qwen_image": "qwen_image"},
    **{"flux2_klein_4b": "flux2_klein", "flux2_klein_9b": "flux2_klein", "flux2_dev": "flux2_dev"},
    "krea2": "krea2",
    "lumina2": "lumina2",
    "anima": "anima",
    **dict.fromkeys(("sd3_medium", "sd35_medium", "sd35_large"), "sd3"),
}  # published base -> the family that trains it


def form_of(spelling: str):
    """Of a list's name: diffusers', or the family's best."""
    base = next(base for base in BASES if spelling.startswith(base))
    return DIFFUSERS if spelling.endswith("_diffusers") else layout_of(base).best


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_keys_and_shapes_of_every_spelling_equal_the_list(spelling: str) -> None:
    """All layers at rank 4; every number is 1, as a layer without numbers needs no ranks."""
    base = next(base for base in BASES if spelling.startswith(base))
    layout, plain = layout_of(base), {}
    for key in reference(f"{base}_diffusers"):
        path = key.removeprefix("transformer.").removesuffix(".lora_A.weight")
        if path != key.removeprefix("transformer."):
            rows, columns = listed(base)["diffusers"][path]
            factors = torch.ones(1, 1).expand(4, columns), torch.ones(1, 1).expand(rows, 4)
            plain[LayerPlace("transformer", path)] = PlainLora(*factors, 1.0)
    made = spell_form(plain, layout, form_of(spelling), LayerSizes(layout, {}))
    assert {key: tuple(one.shape) for key, one in made.items()} == reference(spelling)


def full_size(base: str) -> ModelFamily:
    """Without weights, text encoders and tokenizers."""
    kind = FAMILIES[TRAINED[base]]
    family = kind.__new__(kind)
    family.parts = {"transformer": deepcopy(published(base))}  # it gets adapters
    return family


@pytest.mark.parametrize(
    "base",
    [
        one
        if one in ("flux1", "z_image", "sd35_medium", "flux2_klein_4b")
        else pytest.param(one, marks=pytest.mark.slow)
        for one in TRAINED
    ],
)
def test_what_a_run_exports_at_published_size_equals_the_list(base: str) -> None:
    """By the family's own targets; what never learns is zeros beside other rows of its weight."""
    family = full_size(base)
    options = AdapterOptions("lora", rank=4, alpha=4.0, seed=0)
    adapters = inject(family.parts, family.targets, options, canonical_path=family.canonical_path)
    live = [
        replace(one, tensors={end: torch.ones(1, 1).expand(one.tensors[end].shape) for end in ("down", "up")})
        for one in adapters.layers
    ]
    made = kohya.in_form(family, AdapterSet(live, options), family.file_layout.best).tensors
    spellings = [one for one in SPELLINGS if one.startswith(base) and form_of(one) == family.file_layout.best]
    expected = reference(spellings[0])
    idle = [f"{family.file_layout.best.stem(path)}." for path in family.unread.get("transformer", ())]
    assert made.keys() <= expected.keys()
    lacking = expected.keys() - made.keys()
    unlike = {key for key, one in made.items() if tuple(one.shape) != expected[key]}
    assert not any(made[key].any() for key in unlike)
    assert {next(filter(key.startswith, idle), key) for key in lacking | unlike} == set(idle)
    assert not (lacking if family.file_layout.is_fused else unlike)

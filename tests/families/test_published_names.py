"""The lists of the published bases' layers: as diffusers has them today, and as UIs' own files have them."""

from __future__ import annotations

import math

import pytest
from published_names import BASES, FOLDER, listed
from published_transformers import BASES as TRANSFORMERS
from reference_files import keys_and_shapes

from lora_studio.families.layer_names import OUTSIDE, OWN, PUBLISHED
from lora_studio.families.layer_names.transformers import layouts

LISTS = {"SD1": "sd15_conv", "SD2": "sd2_conv", "SDXL": "sdxl_conv"}


def test_every_published_base_has_a_list_and_no_other_is_there() -> None:
    assert [base.key_list for base in PUBLISHED] == [f"{name}.txt" for name in BASES]
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(base.key_list for base in PUBLISHED)
    listed_bases = [base for layout in layouts().values() for base in layout.published]
    assert sorted(listed_bases) == sorted(TRANSFORMERS)


@pytest.mark.parametrize("name", BASES)
def test_the_list_is_what_diffusers_makes_of_the_published_configuration(name: str) -> None:
    """`python tests/published_names.py` writes it again."""
    assert (FOLDER / f"{name}.txt").read_text("utf-8") == listed(BASES[name]())


@pytest.mark.parametrize("base", PUBLISHED, ids=lambda base: base.title)
def test_own_names_and_shapes_are_those_of_files_that_uis_load(base) -> None:
    """The whole of a file with convolutions, whose tensors of rank 4 give the sizes of the weights."""
    tensors = keys_and_shapes(LISTS[base.title])
    own = {name: place.shape for name, place in base.places.items() if place.how == OWN}
    assert own.keys() == {key.partition(".")[0] for key in tensors}
    for name, shape in own.items():
        down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
        assert (up[0], math.prod(down[1:])) == (shape[0], math.prod(shape[1:])), name
        assert len(down) == len(shape), name


@pytest.mark.parametrize("base", PUBLISHED, ids=lambda base: base.title)
def test_every_layer_of_the_denoiser_has_both_spellings_with_one_shape(base) -> None:
    denoiser = {name: place for name, place in base.places.items() if place.encoder is None}
    lines = (FOLDER / base.key_list).read_text("utf-8").splitlines()
    for line in (line.split(" ") for line in lines if line.startswith("unet ")):
        places = [denoiser[f"lora_unet_{name}"] for name in line[1:3]]
        assert all(place.shape == tuple(map(int, line[3:])) for place in places)
        assert {place.how for place in places} == {OUTSIDE} or len({place.how for place in places}) == 2

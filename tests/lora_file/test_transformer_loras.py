"""Files of transformer families: every spelling is read and written, fused layers split back exactly.

The other side is never our own: names and shapes are those of lists that the UIs' code was run on, and weight
changes those that diffusers' loaders find.
"""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch
from published_transformers import BASES, reference
from safetensors.torch import load_file
from transformer_loras import assert_same_change, keys_and_shapes_of, read_peft, some_layers, write_diffusers

from lora_studio.tools.convert import convert

PIPELINES = {
    "flux1": "FluxPipeline",
    "chroma": "FluxPipeline",  # whose loader ChromaPipeline has
    "flux2_klein_4b": "Flux2KleinPipeline",
    "sd35_medium": "StableDiffusion3Pipeline",
    "z_image": "ZImagePipeline",
    "qwen_image": "QwenImagePipeline",
    "krea2": "Krea2Pipeline",
}
TARGETS = ("kohya", "comfy", "sd_scripts", "diffusers")


def found_by_diffusers(base: str, path: Path):
    """What its loader makes of a file, and no alpha that it would take or leave."""
    return read_peft(getattr(diffusers, PIPELINES[base]).lora_state_dict(load_file(path)))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("base", BASES)
def test_every_form_of_a_file_splits_back_exactly(base: str, target: str, tmp_path: Path):
    factors = some_layers(base)
    written = write_diffusers(tmp_path / "a.safetensors", factors)
    convert(written, target, out=tmp_path / "b.safetensors", dtype="float32")
    convert(tmp_path / "b.safetensors", "diffusers", out=tmp_path / "c.safetensors", dtype="float32")
    before, after = (load_file(tmp_path / f"{name}.safetensors") for name in "ac")
    assert before.keys() <= after.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)  # with the rank that it had
    assert not any(after[key].any() for key in after.keys() - before.keys() if "lora_B" in key)


@pytest.mark.parametrize("base", PIPELINES)
def test_diffusers_finds_in_the_main_file_what_was_trained(base: str, tmp_path: Path):
    factors = some_layers(base, rank=4)
    write_diffusers(tmp_path / "a.safetensors", factors)
    convert(tmp_path / "a.safetensors", "kohya", out=tmp_path / "b.safetensors", dtype="float16")
    assert_same_change(found_by_diffusers(base, tmp_path / "b.safetensors"), factors, rounding=2**-10)


@pytest.mark.parametrize("base", BASES)
def test_names_and_shapes_of_the_main_file_are_those_that_uis_expect(base: str, tmp_path: Path):
    """Of the first block; the list of all is compared by name and shape where a run exports."""
    kinds = {path.stem for path in (Path(__file__).parents[1] / "reference").glob(f"{base}_*.txt")}
    (spelling,) = (kinds - {f"{base}_diffusers"}) or {f"{base}_diffusers"}
    write_diffusers(tmp_path / "a.safetensors", some_layers(base, rank=4))
    convert(tmp_path / "a.safetensors", "kohya", out=tmp_path / "b.safetensors")
    found, listed = keys_and_shapes_of(tmp_path / "b.safetensors"), reference(spelling)
    assert found.items() <= listed.items()
    assert len(found) >= 8


def alphas_beside_letters(path: Path) -> list[str]:
    keys = load_file(path)
    return [key for key in keys if key.endswith(".alpha") and f"{key[:-6]}.lora_A.weight" in keys]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("base", BASES)
def test_no_alpha_stands_beside_lora_a(base: str, target: str, tmp_path: Path):
    write_diffusers(tmp_path / "a.safetensors", some_layers(base))
    convert(tmp_path / "a.safetensors", target, out=tmp_path / "b.safetensors")
    keys = load_file(tmp_path / "b.safetensors")
    assert not alphas_beside_letters(tmp_path / "b.safetensors")
    assert any(key.endswith("alpha") for key in keys) == any("lora_down" in key for key in keys)

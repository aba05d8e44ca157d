"""Runs on transformer bases, from folders and from the files that UIs have, to a file that is verified."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from processes import AtStep, interrupt
from safetensors import safe_open
from tiny import recipe_text, t5_tokenizer
from transformer_files import (
    TEXTS,
    all_in_one,
    new_parts,
    original_text,
    original_transformer,
    original_vae,
    tokenizer_of,
    write,
    write_tokenizers,
)

from lora_studio.errors import Interrupted
from lora_studio.families.loading import load_base
from lora_studio.families.loading.single_file import SingleFileOptions
from lora_studio.families.original.configurations import clip_tokenizer
from lora_studio.recipe.load import load_recipe
from lora_studio.rng import generator
from lora_studio.training.finish import Finished
from lora_studio.training.session import train

BaseOf = Callable[[str], Path]
FAMILIES = (
    "z_image",
    "flux1",
    "chroma",
    "sd3",
    "qwen_image",
    "flux2_klein",
    "flux2_dev",
    "krea2",
    "lumina2",
    "anima",
)
PIPELINES = {
    "z_image": "ZImagePipeline",
    "flux1": "FluxPipeline",
    "chroma": "ChromaPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "qwen_image": "QwenImagePipeline",
    "flux2_klein": "Flux2KleinPipeline",
    "flux2_dev": "Flux2Pipeline",
    "krea2": "Krea2Pipeline",
    "lumina2": "Lumina2Pipeline",
}
FIRST_LAYER = {  # how the best spelling of each begins
    "flux1": "lora_unet_double_blocks_0_",
    "chroma": "lora_unet_double_blocks_0_",
    "sd3": "transformer.transformer_blocks.0.",
    "qwen_image": "lora_unet_transformer_blocks_0_",
    "flux2": "lora_unet_double_blocks_0_",
    "krea2": "diffusion_model.blocks.0.",
    "lumina2": "lora_unet_context_refiner_0_",
    "anima": "diffusion_model.blocks.0.",
}


@pytest.mark.parametrize("family", FIRST_LAYER)
def test_a_run_ends_with_a_verified_file_of_the_familys_spelling(
    family: str, base_of: BaseOf, images: Path, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_text(images, str(base_of(family)), steps=2), "utf-8")
    result = train(load_recipe(path), tmp_path / "run")
    assert isinstance(result, Finished) and result.report.ok
    with safe_open(result.lora_file, "pt") as file:
        assert next(iter(file.keys())).startswith(FIRST_LAYER[family])
        assert ("alpha" in str(file.keys())) == (family not in ("sd3", "krea2", "anima"))


@pytest.mark.slow
@pytest.mark.parametrize("family", FIRST_LAYER)
def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_bytes(
    family: str, base_of: BaseOf, images: Path, tmp_path: Path
) -> None:
    path, folder = tmp_path / "recipe.toml", tmp_path / "stopped"
    path.write_text(recipe_text(images, str(base_of(family)), steps=3), "utf-8")
    straight = train(load_recipe(path), tmp_path / "straight")
    with pytest.raises(Interrupted):
        train(load_recipe(path), folder, on_event=AtStep(1, interrupt))
    resumed = train(folder, resume=True)
    names = ("tiny.safetensors", "checkpoints/step_000003/state.json")
    assert [(resumed.folder / one).read_bytes() for one in names] == [
        (straight.folder / one).read_bytes() for one in names
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_answers_as_the_folder_of_the_same_base(family: str, tmp_path: Path) -> None:
    parts = new_parts(family)
    path = write(tmp_path / "base.safetensors", all_in_one(family, parts))
    names = {part.replace("text_encoder", "tokenizer"): name for part, name in TEXTS[family].items()}
    pads = {"clip_l": "<|endoftext|>", "clip_g": "!"}
    tokenizers = {
        part: clip_tokenizer(None, pads[name], 77) if name in pads else tokenizer_of(name)
        for part, name in names.items()
    }
    components = {**parts, **tokenizers, "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0)}
    if family == "anima":
        blocks = diffusers.AnimaAutoBlocks().init_pipeline()
        blocks.update_components(**components, t5_tokenizer=t5_tokenizer())
        blocks.save_pretrained(str(tmp_path / "folder"), overwrite_modular_index=True)
    else:
        getattr(diffusers, PIPELINES[family])(**components).save_pretrained(tmp_path / "folder")
    write_tokenizers(family, tmp_path / "tokenizers")
    options = SingleFileOptions(tokenizer=tmp_path / "tokenizers")
    file, folder = load_base(str(path), single_file=options), load_base(str(tmp_path / "folder"))
    assert type(file) is type(folder)
    assert (file.native_side, file.stride, file.max_chunks) == (folder.native_side, folder.stride, 1)
    for part, module in folder.parts.items():
        ours, theirs = file.parts[part].state_dict(), module.state_dict()
        assert ours.keys() == theirs.keys()
        assert not [key for key, one in theirs.items() if not torch.equal(ours[key], one)]
    captions = ["a red ball, zwx style", ""]
    latents = torch.randn(2, file.latent_channels, 8, 12, generator=generator("l"))
    pixels = torch.rand(1, 3, 64, 64, generator=generator("p")) * 2 - 1
    found = []
    for one in (file, folder):
        text = one.encode_text(captions)
        with torch.no_grad():
            answer = one.denoise(latents, torch.tensor([0.2, 0.9]), text, torch.full((2, 6), 64.0))
        found.append([*text.values(), answer, *one.encode_image(pixels)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", ["z_image", pytest.param("sd3", marks=pytest.mark.slow)])
def test_a_run_on_a_transformers_file_with_its_text_encoders_and_vae_beside(
    family: str, images: Path, tmp_path: Path
) -> None:
    parts = new_parts(family)
    write(tmp_path / "model.safetensors", original_transformer(family, parts))
    write(tmp_path / "ae.safetensors", original_vae(parts["vae"]))  # type: ignore[arg-type]
    for part, name in TEXTS[family].items():
        write(tmp_path / f"{name}.safetensors", original_text(parts[part]))
    write_tokenizers(family, tmp_path / "tokenizers")
    texts = [f"{name}.safetensors" for name in TEXTS[family].values()]
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_text(images, "model.safetensors", steps=1), "utf-8")
    changes = (
        f"base.text_encoder={texts}",
        "base.vae=ae.safetensors",
        f"base.tokenizer='{tmp_path}/tokenizers'",
    )
    result = train(load_recipe(path, changes=changes), tmp_path / "run")
    assert isinstance(result, Finished) and result.report.ok

"""The pocket base as it is shipped: small, complete, offline, and with SD1.5's names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPVisionModelWithProjection

from lora_studio.families.loading import POCKET_FOLDER, load_base
from lora_studio.pocket.build import adopt, assemble
from lora_studio.pocket.samples import STYLE_TRIGGER, style_samples
from lora_studio.pocket.scenes import COLOURS, OBJECT_NAMES, draw, held_out_scenes
from lora_studio.pocket.stages import images_to_tensor
from lora_studio.pocket.stages.vae import psnr


def test_it_is_at_most_16_megabytes_of_float16_safetensors() -> None:
    files = [path for path in POCKET_FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16_000_000
    weights = [path for path in files if path.suffix in {".safetensors", ".bin", ".pt", ".ckpt"}]
    assert {path.suffix for path in weights} == {".safetensors"}
    for path in weights:
        assert {t.dtype for t in load_file(path).values() if t.is_floating_point()} == {torch.float16}, path


def test_its_unet_has_exactly_the_module_names_of_sd15() -> None:
    """diffusers' defaults are SD1.5's configuration but for the width of the text."""
    with torch.device("meta"):
        sd15 = UNet2DConditionModel(cross_attention_dim=768)
        pocket = UNet2DConditionModel.from_config(
            json.loads((POCKET_FOLDER / "unet" / "config.json").read_text())
        )
    assert [name for name, _ in pocket.named_modules()] == [name for name, _ in sd15.named_modules()]
    assert list(pocket.state_dict()) == list(sd15.state_dict())
    stored = load_file(POCKET_FOLDER / "unet" / "diffusion_pytorch_model.safetensors")
    assert stored.keys() == sd15.state_dict().keys()


def test_it_draws_offline_through_diffusers() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(
        POCKET_FOLDER, dtype=torch.float32, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a red ball in a meadow", num_inference_steps=4).images[0]
    assert image.size == (64, 64)
    assert len(image.getcolors(64 * 64)) > 50


def test_its_vae_keeps_held_out_scenes() -> None:
    pixels = images_to_tensor([draw(scene, 64, 64) for scene in held_out_scenes(64, seed=3)])
    assert psnr(load_base("pocket").parts["vae"], pixels) >= 24.0  # type: ignore[arg-type]


def test_every_word_of_its_world_is_one_token_and_captions_fit() -> None:
    tokenizer = load_base("pocket").tokenizers["tokenizer"]
    for word in (*OBJECT_NAMES, *COLOURS, "meadow", "beach", "night", "snow", "desert", "room"):
        assert len(tokenizer.tokenize(word)) == 1, word
    longest = (
        "an image of a small purple flower at the bottom and a large orange robot on the right in a desert"
    )
    assert len(tokenizer(longest).input_ids) <= tokenizer.model_max_length
    of_the_style = [sample.caption for sample in style_samples()]
    of_the_style += [scene.caption(STYLE_TRIGGER) for scene in held_out_scenes(200)]
    assert max(len(tokenizer(caption).input_ids) for caption in of_the_style) <= tokenizer.model_max_length


@torch.inference_mode()
def test_its_image_encoder_finds_the_caption_of_an_image() -> None:
    family = load_base("pocket")
    vision = CLIPVisionModelWithProjection.from_pretrained(
        POCKET_FOLDER / "image_encoder", dtype=torch.float32
    )
    projection = load_file(POCKET_FOLDER / "image_encoder" / "text_projection.safetensors")[
        "text_projection.weight"
    ]
    scenes = held_out_scenes(50, seed=4)
    images = vision(images_to_tensor([draw(scene, 64, 64) for scene in scenes])).image_embeds
    tokenizer, encoder = family.tokenizers["tokenizer"], family.parts["text_encoder"]
    ids = tokenizer(
        [s.caption() for s in scenes], padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    text = encoder(ids).pooler_output @ projection.float().T
    normal = torch.nn.functional.normalize
    best = (normal(images, dim=-1) @ normal(text, dim=-1).T).argmax(1)
    found = sum(scenes[int(b)].caption() == scene.caption() for b, scene in zip(best, scenes, strict=True))
    assert found >= 35  # of 50; chance is 1


@pytest.mark.slow
def test_the_build_makes_a_base_from_nothing_and_resumes(tmp_path: Path) -> None:
    """A few steps of every stage, twice: the second call goes on where the first one stopped."""
    command = [
        sys.executable,
        "-m",
        "lora_studio.pocket.build",
        "--work",
        str(tmp_path / "w"),
        "--out",
        str(tmp_path / "o"),
    ]
    for steps in ("2", "3"):
        counts = [
            part for stage in ("vae", "clip", "unet", "decoder") for part in (f"--{stage}-steps", steps)
        ]
        subprocess.run(command + counts, check=True)
    assert StableDiffusionPipeline.from_pretrained(tmp_path / "o", local_files_only=True).unet is not None


def test_a_build_can_go_on_from_it(tmp_path: Path) -> None:
    """Taken apart into a work folder and put together again, it is the same base."""
    adopt(POCKET_FOLDER, tmp_path / "work")
    (tmp_path / "work" / "unet" / "start").rename(tmp_path / "work" / "unet" / "done")
    assemble(tmp_path / "work", tmp_path / "again")
    files = sorted(path.relative_to(POCKET_FOLDER) for path in POCKET_FOLDER.rglob("*.safetensors"))
    assert len(files) == 5
    for name in files:
        old, new = load_file(POCKET_FOLDER / name), load_file(tmp_path / "again" / name)
        assert old.keys() == new.keys() and all(torch.equal(old[key], new[key]) for key in old), name


def test_its_configuration_says_nothing_about_where_it_was_built() -> None:
    configs = sorted(POCKET_FOLDER.glob("*/config.json"))
    assert configs and not [path for path in configs if '"/' in path.read_text("utf-8")]

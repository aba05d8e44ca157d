"""The second pocket base as it is shipped: small, complete, offline, and with Z-Image's names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from console import run
from diffusers import AutoencoderKL, ZImagePipeline, ZImageTransformer2DModel
from safetensors.torch import load_file
from torch import nn

from lora_studio.families.loading import load_base
from lora_studio.pocket import EMBEDDED, POCKET_FLOW, pocket_note
from lora_studio.pocket.build import adopt, assemble_flow
from lora_studio.pocket.samples import FLOW_STYLE, TRIGGERS, style_samples
from lora_studio.pocket.scenes import COLOURS, OBJECT_NAMES, draw, held_out_scenes
from lora_studio.pocket.stages import images_to_tensor
from lora_studio.pocket.stages.text import tokens
from lora_studio.pocket.stages.vae import psnr

FOLDER = EMBEDDED[POCKET_FLOW]


@pytest.fixture(scope="module")
def pipeline() -> ZImagePipeline:
    made = ZImagePipeline.from_pretrained(FOLDER, dtype=torch.float32, local_files_only=True)
    made.set_progress_bar_config(disable=True)
    return made


def test_it_is_at_most_24_megabytes_of_float16_safetensors() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 24_000_000
    weights = [path for path in files if path.suffix in {".safetensors", ".bin", ".pt", ".ckpt"}]
    assert {path.suffix for path in weights} == {".safetensors"}
    for path in weights:
        assert {t.dtype for t in load_file(path).values() if t.is_floating_point()} == {torch.float16}, path


def test_its_transformer_has_z_images_modules_and_fewer_blocks(pipeline: ZImagePipeline) -> None:
    """diffusers' defaults are Z-Image's configuration."""
    with torch.device("meta"):
        published = ZImageTransformer2DModel()

    def kinds(module: nn.Module) -> set[str]:
        return {re.sub(r"\.\d+", ".#", name) for name, _ in module.named_parameters()}

    assert kinds(pipeline.transformer) == kinds(published)


def test_it_draws_offline_through_diffusers(pipeline: ZImagePipeline) -> None:
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "width": 128, "height": 128}
    image = pipeline("a red ball in a meadow", **options).images[0]
    assert image.size == (128, 128) and len(image.getcolors(128 * 128)) > 50


def test_its_vae_keeps_held_out_scenes() -> None:
    vae = AutoencoderKL.from_pretrained(FOLDER / "vae", dtype=torch.float32)
    pixels = images_to_tensor([draw(scene, 128, 128) for scene in held_out_scenes(32, seed=3)])
    assert psnr(vae, pixels) >= 28.0


def test_every_word_of_its_world_is_one_token_and_captions_fit(pipeline: ZImagePipeline) -> None:
    for word in (*OBJECT_NAMES, *COLOURS, "meadow", "beach", "night", "snow", "desert", "room"):
        assert len(pipeline.tokenizer.tokenize(f" {word}")) == 1, word
    captions = [sample.caption for sample in style_samples(FLOW_STYLE)]
    captions += [scene.caption(TRIGGERS[FLOW_STYLE]) for scene in held_out_scenes(200)]
    assert tokens(pipeline.tokenizer, captions)[1].sum(1).max() <= 32


def test_it_is_a_base_by_its_name_of_which_nothing_is_assumed(capsys: pytest.CaptureFixture[str]) -> None:
    base = load_base(POCKET_FLOW, weights=False)
    assert base.notes == (pocket_note(POCKET_FLOW),) and "128 x 128" in base.notes[0]
    assert base.native_side == 128 and not base.distilled
    code, out, _ = run(["init", "--list"], capsys)
    assert code == 0 and "pocket_flow_style" in out and "pocket_flow_subject" in out


def test_a_build_can_go_on_from_it(tmp_path: Path) -> None:
    """Taken apart into a work folder and put together again, it is the same base."""
    adopt(FOLDER, tmp_path / "work", "flow")
    (tmp_path / "work" / "transformer" / "start").rename(tmp_path / "work" / "transformer" / "done")
    assemble_flow(tmp_path / "work", tmp_path / "again")
    files = sorted(path.relative_to(FOLDER) for path in FOLDER.rglob("*.safetensors"))
    assert len(files) == 3
    for name in files:
        old, new = load_file(FOLDER / name), load_file(tmp_path / "again" / name)
        assert old.keys() == new.keys() and all(torch.equal(old[key], new[key]) for key in old), name


def test_its_configuration_says_nothing_about_where_it_was_built() -> None:
    configs = sorted(FOLDER.glob("*/*config.json"))
    assert len(configs) == 5 and not [path for path in configs if '"/' in path.read_text("utf-8")]
    assert json.loads((FOLDER / "model_index.json").read_text("utf-8"))["_class_name"] == "ZImagePipeline"

"""Qwen-Image: what is refused, how its published text encoder and its VAE of videos are read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from lora_studio.errors import BaseModelError
from lora_studio.families import vaes
from lora_studio.families.loading import load_base
from lora_studio.rng import generator

BaseOf = Callable[[str], Path]


@pytest.fixture
def copy(base_of: BaseOf, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base_of("qwen_image"), tmp_path / "copy"))


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


def refused(folder: Path, **options: Any) -> str:
    with pytest.raises(BaseModelError) as caught:
        load_base(str(folder), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


RELATIVES = {
    "layered": ("transformer/config.json", {"use_additional_t_cond": True}, "it is Qwen-Image Layered"),
    "edit 2511": ("transformer/config.json", {"zero_cond_t": True}, "it is Qwen-Image Edit"),
    "edit": ("model_index.json", {"_class_name": "QwenImageEditPlusPipeline"}, "it is Qwen-Image Edit"),
    "control": ("transformer/config.json", {"_class_name": "QwenImageControlNetModel"}, "a ControlNet"),
    "2.1": ("transformer/config.json", {"_class_name": "QwenImage21Transformer2DModel"}, "Qwen-Image 2.1"),
    "guided": ("transformer/config.json", {"guidance_embeds": True}, "is told a guidance"),
    "channels": ("transformer/config.json", {"in_channels": 132}, "takes 132 numbers a token"),
    "another encoder": (
        "transformer/config.json",
        {"joint_attention_dim": 99},
        "gives 24 numbers a token, but its transformer takes 99",
    ),
}


@pytest.mark.parametrize("case", RELATIVES)
def test_a_relative_of_it_is_refused_by_name(case: str, copy: Path) -> None:
    file, values, words = RELATIVES[case]
    edit(copy / file, **values)
    assert words in refused(copy, weights=False)


def test_of_a_text_encoder_as_published_what_reads_text_is_loaded(base_of: BaseOf, copy: Path) -> None:
    """With the names and the flat configuration that its makers published it with."""
    folder = copy / "text_encoder"
    nested = json.loads((folder / "config.json").read_text("utf-8"))
    flat = nested.pop("text_config") | nested
    (folder / "config.json").write_text(json.dumps(flat), "utf-8")
    tensors = {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    assert any(name.startswith("visual.") for name in tensors) and "lm_head.weight" in tensors
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    published, own = (load_base(str(path)) for path in (copy, base_of("qwen_image")))
    names = published.parts["text_encoder"].state_dict()
    assert not [name for name in names if "visual" in name or "head" in name]
    ours, theirs = (one.encode_text(["a red ball", ""])["text"] for one in (published, own))
    assert torch.equal(ours, theirs)


def test_a_caption_is_cut_where_its_pipeline_cuts_it(base_of: BaseOf) -> None:
    family = load_base(str(base_of("qwen_image")))
    assert family.tokenizers["tokenizer"].model_max_length == 1024 - 5
    pipeline = DiffusionPipeline.from_pretrained(base_of("qwen_image"), local_files_only=True)
    long = "q" * 1100
    with torch.no_grad():
        theirs, _ = pipeline.encode_prompt([long], device="cpu")
    ours = family.encode_text([long])["text"]
    assert ours.shape[1] == 1024
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_what_its_vae_is_asked_is_one_frame_there_and_back(base_of: BaseOf) -> None:
    vae: Any = load_base(str(base_of("qwen_image"))).parts["vae"]
    pixels = torch.rand(2, 3, 16, 24, generator=generator("p")) * 2 - 1
    with torch.no_grad():
        mean, _ = vaes.encode(vae, pixels)
        theirs = vae.decode(vae.encode(pixels[:, :, None]).latent_dist.mean).sample[:, :, 0]
        torch.testing.assert_close(vaes.decode(vae, mean), theirs, atol=1e-5, rtol=0)


def test_latents_of_another_scale_are_another_bases(base_of: BaseOf, copy: Path) -> None:
    own = base_of("qwen_image")
    assert "of the kind AutoencoderKL, not AutoencoderKLQwenImage" in refused(own, vae=str(base_of("flux1")))
    means = json.loads((copy / "vae/config.json").read_text("utf-8"))["latents_mean"]
    edit(copy / "vae/config.json", latents_mean=[one + 0.5 for one in means])
    assert "makes latents of another kind: their shift is [" in refused(own, vae=str(copy))
    assert load_base(str(copy)).fingerprint("vae") != load_base(str(own)).fingerprint("vae")

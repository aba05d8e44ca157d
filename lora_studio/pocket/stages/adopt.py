"""Go on from a finished base instead of from nothing: take its parts apart into a work folder.

The optimizer's moments are not in a finished base, so training goes on with a new warm-up. The VAE's encoder
and the text encoder stay as they are, because the UNet has learned their language.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from lora_studio.pocket.stages.clip import ClipPair


def adopt(base: Path, work: Path) -> None:
    """Fill an empty `work` with the finished parts of `base`; its UNet is where the unet stage starts."""
    if (work / "unet").exists():
        raise SystemExit(f"{work} holds a build already; name an empty folder with --work.")
    vae = AutoencoderKL.from_pretrained(base / "vae", dtype=torch.float32)
    for stage in ("vae", "decoder"):
        vae.save_pretrained(work / stage / "done")
    unet = UNet2DConditionModel.from_pretrained(base / "unet", dtype=torch.float32)
    unet.save_pretrained(work / "unet" / "start")
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    tokenizer.save_pretrained(work / "clip" / "tokenizer")
    save_file(_pair_state(base, ClipPair(tokenizer)), work / "clip" / "pair.safetensors")


def _pair_state(base: Path, pair: ClipPair) -> dict[str, torch.Tensor]:
    pair.text.load_state_dict(CLIPTextModel.from_pretrained(base / "text_encoder").float().state_dict())
    vision = CLIPVisionModelWithProjection.from_pretrained(base / "image_encoder")
    pair.vision.load_state_dict(vision.float().state_dict())
    projection = load_file(base / "image_encoder" / "text_projection.safetensors")["text_projection.weight"]
    pair.text_projection.weight.data.copy_(projection)
    return {name: tensor.contiguous() for name, tensor in pair.state_dict().items()}

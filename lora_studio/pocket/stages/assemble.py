"""Stage 4: the parts in half precision as one diffusers folder, with the image encoder beside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from lora_studio.pocket.stages.clip import ClipPair, load_pair
from lora_studio.pocket.stages.unet import new_scheduler


def assemble(work: Path, out: Path) -> None:
    """Write the finished base of `work` to `out`; a folder that was there is replaced at the end."""
    pair, tokenizer = load_pair(work / "clip")
    vae = AutoencoderKL.from_pretrained(work / "decoder" / "done")
    unet = UNet2DConditionModel.from_pretrained(work / "unet" / "done")
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    write_base(temporary, vae, unet, pair, tokenizer)
    shutil.rmtree(out, ignore_errors=True)
    temporary.rename(out)


def write_base(
    out: Path, vae: AutoencoderKL, unet: UNet2DConditionModel, pair: ClipPair, tokenizer: CLIPTokenizer
) -> None:
    """A folder that `StableDiffusionPipeline.from_pretrained` loads, in fp16 safetensors."""
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=pair.text.half(),
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(out, safe_serialization=True)
    for config in out.glob("*/config.json"):
        _forget_paths(config)
    tokenizer.backend_tokenizer.model.save(
        str(out / "tokenizer")
    )  # vocab.json and merges.txt, which UIs read
    pair.vision.half().save_pretrained(out / "image_encoder")
    projection = {"text_projection.weight": pair.text_projection.weight.detach().to(torch.float16)}
    save_file(projection, out / "image_encoder" / "text_projection.safetensors")


def _forget_paths(config: Path) -> None:
    """Where the part was built is nobody's business."""
    values = {key: value for key, value in json.loads(config.read_text()).items() if key != "_name_or_path"}
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")

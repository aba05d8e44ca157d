"""Prompts with their seeds, and images of them through diffusers' own pipeline, in batches."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, ZImagePipeline
from PIL import Image

from lora_studio.pocket.scenes import contact_sheet

DEFAULT_BASE = Path("lora_studio/pocket/weights")
GUIDANCE = 4.0  # the base's, of its card
LORA_GUIDANCE = 3.0  # of base and tuned alike: 4 exaggerates what a LoRA has learned, and objects suffer
STEPS = 25
_BATCH = 25


@dataclass(frozen=True)
class Prompt:
    """A text and the seed of its noise; an image depends on nothing else, not even on its batch."""

    text: str
    seed: int


def load_pipeline(base: Path) -> DiffusionPipeline:
    """The base in float32, offline, without a progress bar."""
    is_flow = json.loads((base / "model_index.json").read_text("utf-8"))["_class_name"] == "ZImagePipeline"
    kind = ZImagePipeline if is_flow else StableDiffusionPipeline
    unchecked = {} if is_flow else {"safety_checker": None, "requires_safety_checker": False}
    pipe = kind.from_pretrained(base, dtype=torch.float32, local_files_only=True, **unchecked)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to("cuda" if torch.cuda.is_available() else "cpu")


@torch.inference_mode()
def generate(
    pipe: DiffusionPipeline, prompts: list[Prompt], *, guidance: float, name: str = "images"
) -> list[Image.Image]:
    """One image for each prompt; progress goes to stderr under `name`."""
    images: list[Image.Image] = []
    options: dict[str, float] = {"guidance_scale": guidance, "num_inference_steps": STEPS}
    if isinstance(
        pipe, ZImagePipeline
    ):  # whose guidance is 0 where others' is 1, and whose usual side is 1024
        side = pipe.vae.config.sample_size
        options |= {"guidance_scale": guidance - 1, "width": side, "height": side}
    for start in range(0, len(prompts), _BATCH):
        some = prompts[start : start + _BATCH]
        noise = [torch.Generator().manual_seed(prompt.seed) for prompt in some]
        answer = pipe([p.text for p in some], generator=noise, **options)
        images += answer.images
        print(f"{name}: {len(images)} of {len(prompts)}", file=sys.stderr, flush=True)
    return images


def save_sheet(images: list[Image.Image], columns: int, path: Path) -> None:
    """A contact sheet at twice the native size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    doubled = [p.resize((2 * p.width, 2 * p.height), Image.Resampling.LANCZOS) for p in images]
    contact_sheet(doubled, columns).save(path)

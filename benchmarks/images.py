"""Prompts with their seeds, and images of them through diffusers' own pipeline, in batches."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
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


def load_pipeline(base: Path) -> StableDiffusionPipeline:
    """The base in float32, offline, without a progress bar."""
    pipe = StableDiffusionPipeline.from_pretrained(
        base,
        dtype=torch.float32,
        safety_checker=None,
        requires_safety_checker=False,
        local_files_only=True,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to("cuda" if torch.cuda.is_available() else "cpu")


@torch.inference_mode()
def generate(
    pipe: StableDiffusionPipeline, prompts: list[Prompt], *, guidance: float, name: str = "images"
) -> list[Image.Image]:
    """One image for each prompt; progress goes to stderr under `name`."""
    images: list[Image.Image] = []
    for start in range(0, len(prompts), _BATCH):
        some = prompts[start : start + _BATCH]
        noise = [torch.Generator().manual_seed(prompt.seed) for prompt in some]
        answer = pipe(
            [p.text for p in some], guidance_scale=guidance, num_inference_steps=STEPS, generator=noise
        )
        images += answer.images
        print(f"{name}: {len(images)} of {len(prompts)}", file=sys.stderr, flush=True)
    return images


def save_sheet(images: list[Image.Image], columns: int, path: Path) -> None:
    """A contact sheet at twice the native size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    doubled = [p.resize((2 * p.width, 2 * p.height), Image.Resampling.LANCZOS) for p in images]
    contact_sheet(doubled, columns).save(path)

"""Random miniatures of base models for tests: on the CPU, in seconds, with real classes and real files."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from PIL import Image
from transformers import CLIPTokenizer

from lora_studio.pocket.scenes import draw, sample_scene
from lora_studio.pocket.stages.assemble import write_base
from lora_studio.pocket.stages.clip import ClipPair, new_tokenizer
from lora_studio.pocket.stages.unet import new_unet
from lora_studio.pocket.stages.vae import new_vae


def random_base(folder: Path) -> Path:
    """A diffusers folder with the pocket base's shapes and random weights."""
    torch.manual_seed(0)
    tokenizer: CLIPTokenizer = new_tokenizer(folder.with_name("tokenizer"))
    write_base(folder, new_vae(), new_unet(), ClipPair(tokenizer), tokenizer)
    return folder


def picture_folder(folder: Path, *, count: int = 5, trigger: str = "zwx style") -> Path:
    """`count` pictures of several shapes and formats with captions."""
    folder.mkdir(parents=True)
    shapes = [(64, 64), (96, 64), (64, 96), (112, 64), (80, 72)]
    for number in range(count):
        scene = sample_scene(number)
        picture: Image.Image = draw(scene, *shapes[number % len(shapes)], style="woodcut")
        picture.save(folder / f"{number:02}.{('png', 'jpg', 'webp')[number % 3]}")
        (folder / f"{number:02}.txt").write_text(scene.caption(trigger), "utf-8")
    return folder


def recipe_text(images: Path, base: str, *, steps: int = 4, extra: str = "") -> str:
    """A small recipe; `extra` is appended to it."""
    return f"""
name = "tiny"
[base]
model = "{base}"
[data]
images = "{images}"
trigger = "zwx style"
resolution = 64
[adapter]
rank = 4
alpha = 4
[training]
steps = {steps}
batch_size = 2
learning_rate = 1e-3
warmup_steps = 1
checkpoint_every = 2
device = "cpu"
{extra}
"""


def python_random() -> random.Random:
    """The tests' own random numbers."""
    return random.Random(0)

"""Previews: images of the same prompts and seeds from the base and the tuned model."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lora_studio.families.base import ModelFamily
from lora_studio.recipe.training import SamplesConfig
from lora_studio.rng import generator

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


SHOWN_SIDE = 256  # smaller images are enlarged to about this, so that grids can be looked at


def render(
    family: ModelFamily, config: SamplesConfig, *, side: int, after_step: Callable[[], object] | None = None
) -> list[Image.Image]:
    """One image a prompt, of side x side pixels, from the parts as they are.

    Weights and global randomness stay untouched. `after_step` is called after each of `config.steps`.
    """

    def after(_pipeline: object, _step: int, _timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
        if after_step is not None:
            after_step()
        return tensors

    noise = [generator(config.seed, "preview", number) for number in range(len(config.prompts))]
    with family.placed(*family.parts):
        pipeline = family.pipeline()
        with torch.no_grad(), in_its_precision(family):  # FSDP cannot take inference_mode's tensors back
            drawn = pipeline(
                prompt=list(config.prompts),
                negative_prompt=[config.negative_prompt] * len(config.prompts),
                generator=noise,
                num_inference_steps=config.steps,
                guidance_scale=config.guidance,
                height=side,
                width=side,
                callback_on_step_end=after,
            )
    images: list[Image.Image] = drawn.images
    return images


def sheet_of(prompts: Sequence[str], columns: Mapping[str, Sequence[Image.Image]]) -> Image.Image:
    """A sheet with a row a prompt: its words, then its image in every column, whose titles stand above."""
    first = next(iter(columns.values()))[0]
    scale = max(1, round(SHOWN_SIDE / max(first.size)))
    width, height = first.width * scale, first.height * scale
    gap, line = 12, 26
    wide = len(columns) * (width + gap) + gap
    sheet = Image.new("RGB", (wide, line + len(prompts) * (height + line + gap)), "white")
    drawing = ImageDraw.Draw(sheet)
    drawing.font = ImageFont.load_default(size=15)
    for row, prompt in enumerate(prompts):
        place = (gap, line + row * (height + line + gap) + 4)
        drawing.text(place, _shortened(prompt, drawing, wide - 2 * gap), fill="#444")
    for column, (title, images) in enumerate(columns.items()):
        left = gap + column * (width + gap)
        drawing.text((left, 5), _shortened(title, drawing, width), fill="black")
        for row, image in enumerate(images):
            large = image.resize((width, height), Image.Resampling.BICUBIC)
            sheet.paste(large, (left, 2 * line + row * (height + line + gap)))
    return sheet


def _shortened(text: str, drawing: ImageDraw.ImageDraw, width: int) -> str:
    while drawing.textlength(text) > width:
        text = text[:-4].rstrip() + "..."
    return text


def as_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def load_images(folder: Path, count: int) -> list[Image.Image] | None:
    """The base's, of an earlier start of the same run; None if they are not all there."""
    paths = [folder / f"base_{number:02}.png" for number in range(count)]
    return [Image.open(path).convert("RGB") for path in paths] if all(p.is_file() for p in paths) else None


@contextmanager
def in_its_precision(family: ModelFamily) -> Iterator[None]:
    """What a pipeline runs in: its VAE's weights are float32, the other parts have the base's precision."""
    dtype = family.precision
    autocast = torch.autocast(family.device.type, dtype, enabled=dtype != torch.float32)
    with autocast, _decoding_in_float32(family) if dtype == torch.float16 else nullcontext():
        yield


@contextmanager
def _decoding_in_float32(family: ModelFamily) -> Iterator[None]:
    """SDXL's VAE overflows in float16 and gives black images."""
    vae: AutoencoderKL = family.parts["vae"]
    decode = vae.decode

    def in_float32(latents: Tensor, *arguments: object, **named: object) -> object:
        with torch.autocast(family.device.type, enabled=False):
            return decode(latents.float(), *arguments, **named)

    vae.decode = in_float32
    try:
        yield
    finally:
        del vae.decode

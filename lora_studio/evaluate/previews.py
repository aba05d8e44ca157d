"""Previews: images of the same prompts and seeds from the base and the tuned model."""

from __future__ import annotations

import copy
import io
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from lora_studio.families.base import ModelFamily, PromptTensors, UsualSampling
from lora_studio.families.transformers import joined
from lora_studio.families.vaes import pixels_per_own
from lora_studio.recipe.training import SamplesConfig
from lora_studio.rng import generator

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DiffusionPipeline


MOST_UNTILED = 1024**2  # pixels of an image that is decoded as a whole; tiles may differ a little in tone
MOST_TOGETHER = 128**2  # pixels that are drawn in one pass: several images only of the smallest bases


AskedPrompt = tuple[str, str, bool]  # with its negative one, and whether it is guided


def render(
    family: ModelFamily, config: SamplesConfig, *, side: int, after_step: Callable[[], object] | None = None
) -> list[Image.Image]:
    """One image a prompt, of side x side pixels, from the parts as they are.

    An image depends on its prompt, its place and the seed alone; see `draw_asked`.
    """
    noises = [Noise(config.seed, number) for number in range(len(config.prompts))]
    asked = list(zip(config.prompts, noises, strict=True))
    return draw_asked(family, asked, config, size=(side, side), after_step=after_step)


class Noise(NamedTuple):
    """What an image begins with."""

    seed: int
    place: int = 0  # among those of the seed


def draw_asked(
    family: ModelFamily,
    asked: Sequence[tuple[str, Noise]],
    config: SamplesConfig,
    *,
    size: tuple[int, int],
    after_step: Callable[[], object] | None = None,
) -> list[Image.Image]:
    """One image for each prompt and its noise, of a width and height, from the parts as they are.

    One at a time unless they are tiny (`MOST_TOGETHER`), and with the text encoders gone before the denoiser
    begins unless they were on the device anyway: so its memory is that of one image, however many there are.
    Weights and global randomness stay untouched. `after_step` is called after each of `config.steps` of a
    pass. Of `config` the prompts and the seed are not read.
    """

    def after(_pipeline: object, _step: int, _timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
        if after_step is not None:
            after_step()
        return tensors

    steps, guidance = sampling_of(family, config)
    pipeline, guided, images = family.pipeline(), guidance > 1, list[Image.Image]()
    width, height = size
    with torch.no_grad(), in_its_precision(family):  # FSDP cannot take inference_mode's tensors back
        prompts = list(dict.fromkeys(prompt for prompt, _ in asked))
        wanted = [(prompt, config.negative_prompt, guided) for prompt in prompts]
        encoded = dict(zip(prompts, encode_prompts(family, pipeline, wanted), strict=True))
        with family.also_placed(family.denoiser):
            make_ready(pipeline, family)
            pipeline.vae.use_tiling = width * height > MOST_UNTILED
            at_once = drawn_together(math.sqrt(width * height))
            for group in (asked[first : first + at_once] for first in range(0, len(asked), at_once)):
                drawn = pipeline(
                    **side_by_side([encoded[prompt] for prompt, _ in group]),
                    **family.guided_by(guidance),
                    generator=[generator(noise.seed, "preview", noise.place) for _, noise in group],
                    num_inference_steps=steps,
                    height=height,
                    width=width,
                    callback_on_step_end=after,
                )
                images += drawn.images
    return images


def make_ready(pipeline: DiffusionPipeline, family: ModelFamily) -> None:
    """With its own decoder, and without text encoders that are not there."""
    pipeline.vae = decoder_of(family)
    for name in family.text_encoders:
        if family.is_awaited(name):  # diffusers works where the first of its networks is
            setattr(pipeline, name, None)


def sampling_of(family: ModelFamily, config: SamplesConfig) -> UsualSampling:
    """As asked for, and else as is usual for the base."""
    steps, guidance = family.usual_sampling
    return UsualSampling(config.steps or steps, guidance if config.guidance is None else config.guidance)


def keep_prompts(family: ModelFamily, config: SamplesConfig) -> None:
    """Of a staged family: what `render` needs of its text encoders, so that these need not come again."""
    guided = sampling_of(family, config).guidance > 1
    keep(family, [(prompt, config.negative_prompt, guided) for prompt in config.prompts])


def keep(family: ModelFamily, wanted: Sequence[AskedPrompt]) -> None:
    """As `keep_prompts`, of prompts and negative ones."""
    if family.staged and any(one not in family.kept_prompts for one in wanted):
        with torch.no_grad(), in_its_precision(family):
            family.kept_prompts |= zip(wanted, encode_prompts(family, family.pipeline(), wanted), strict=True)


def encode_prompts(
    family: ModelFamily, pipeline: DiffusionPipeline, wanted: Sequence[AskedPrompt]
) -> list[PromptTensors]:
    """Of each prompt with its negative one, and whether it is guided, what the pipeline takes for it."""
    if all(one in family.kept_prompts for one in wanted):
        return [family.kept_prompts[one] for one in wanted]
    with family.also_placed(*family.text_encoders):
        return [
            family.encode_prompt(pipeline, prompt, negative, guided=guided)
            for prompt, negative, guided in wanted
        ]


def drawn_together(side: float) -> int:
    """How many images as large as side x side pixels are drawn in one pass, at most."""
    return max(1, int(MOST_TOGETHER / side**2))


def side_by_side(prompts: Sequence[Mapping[str, Tensor | list[Tensor] | None]]) -> PromptTensors:
    """Without those that are None of every prompt, such as the negative ones where nothing is guided."""
    given = {name: [prompt[name] for prompt in prompts] for name in prompts[0]}
    return {name: _joined(values) for name, values in given.items() if values[0] is not None}


def _joined(given: Sequence[Tensor | list[Tensor] | None]) -> Tensor | list[Tensor]:
    if isinstance(given[0], list):
        return [tensor for one in given if isinstance(one, list) for tensor in one]
    return joined([one for one in given if isinstance(one, Tensor)])


def decoder_of(family: ModelFamily) -> AutoencoderKL:
    """A copy of the family's VAE on its device, for a pipeline that runs within `in_its_precision`.

    In bfloat16 it is in that: under CUDA's autocast it would normalise in float32, with 1 GiB more for an
    image of 1024 x 1024. In float16 it is in float32, since SDXL's overflows and gives black images.
    """
    dtype = torch.bfloat16 if family.precision == torch.bfloat16 else torch.float32
    vae: AutoencoderKL = copy.deepcopy(family.whole("vae"))
    torch.nn.Module.to(vae, family.device, dtype)  # diffusers' own `to` warns about every cast
    # with a reference to itself it would stay on the device until the next search for cycles
    decode, itself = type(vae).decode, weakref.ref(vae)

    def without_autocast(latents: Tensor, *arguments: object, **named: object) -> object:
        with torch.autocast(family.device.type, enabled=False):
            return decode(itself(), latents.to(dtype), *arguments, **named)

    vae.decode = without_autocast
    vae.tile_sample_min_size = math.isqrt(MOST_UNTILED)
    vae.tile_latent_min_size = vae.tile_sample_min_size // pixels_per_own(vae.config)
    return vae


def in_its_precision(family: ModelFamily) -> AbstractContextManager[object]:
    """What a pipeline of its parts runs in."""
    dtype = family.precision
    return torch.autocast(family.device.type, dtype, enabled=dtype != torch.float32)


def as_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def load_images(paths: Sequence[Path], side: int) -> list[Image.Image | None]:
    """Images as they were drawn at side x side pixels; None of what is missing, damaged or of other sides."""
    return [_load_image(path, side) for path in paths]


def _load_image(path: Path, side: int) -> Image.Image | None:
    try:
        if not path.is_file():
            return None
        with Image.open(path, formats=["PNG"]) as image:
            if not all(0 <= side - one < 64 for one in image.size):  # those of a base may be rounded
                return None
            image.verify()  # the checksums, which pixels are read without
        with Image.open(path, formats=["PNG"]) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None

"""What a base can do with a set of images before it is trained on them: four measures, each per image.

- following: the cosine, in the encoder's common space, of what the base draws for an image's caption without
  the trigger and that caption, less the mean cosine with the other images' captions (CLIP score, arXiv
  2104.08718, with mismatched captions as its zero, so that encoders' different offsets cancel).
- ceiling: the peak signal-to-noise ratio of an image that went through the base's VAE and back, in decibels
  of a range of 1. A LoRA does not train the VAE, so nothing that it draws is better than that.
- gap: the denoising loss on an image by the loss on the base's own image of the same caption, with the same
  noise at the same levels: 1 where the image is as usual to the base as its own.
- distance: how much less alike to the others is what the base draws for an image's whole caption than the
  image itself is: 0 where the base draws them already.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lora_studio.evaluate.encoders import ImageEncoder
from lora_studio.evaluate.previews import Noise, decoder_of, draw_asked, in_its_precision
from lora_studio.evaluate.result import Interval
from lora_studio.evaluate.statistics import mean_of
from lora_studio.evaluate.validation import TIMESTEPS, Validation, ValidationImage
from lora_studio.families import vaes
from lora_studio.families.base import Conditioning, ModelFamily
from lora_studio.objectives.base import ObjectiveOptions
from lora_studio.recipe.training import SamplesConfig

Aspect = Literal["following", "ceiling", "gap", "distance"]
ASPECTS: tuple[Aspect, ...] = get_args(Aspect)
HIGHER_IS_BETTER = frozenset({"following", "ceiling"})
MOST_DECIBELS = 100.0  # of an image that comes back as it was
_ROWS = 4  # of a denoiser's pass


@dataclass(frozen=True)
class TargetImage:
    """An image to be learned, as a square of the side that is drawn."""

    name: str
    sha256: str
    image: Image.Image
    caption: str
    plain: str  # the caption without the trigger


@dataclass(frozen=True)
class ImageFigures:
    """What was measured on one image; `levels`: the gap's ratio at each noise level, clean to noisy."""

    name: str
    figures: Mapping[Aspect, float]
    levels: tuple[float, ...]


@dataclass(frozen=True)
class BaseAssessment:
    """One base and the images, in their order."""

    base: str
    images: tuple[ImageFigures, ...]
    measures: Mapping[Aspect, Interval]
    levels: tuple[Interval, ...]  # the gap at each noise level, of TIMESTEPS from clean to noisy
    drawn: Mapping[str, tuple[Image.Image, Image.Image]] = field(
        default_factory=dict, repr=False, compare=False
    )
    """Image's name -> what went through the VAE, and what was drawn for its whole caption."""

    def worst(self, aspect: Aspect, count: int = 4) -> list[ImageFigures]:
        """The images that are furthest from good in it."""
        sign = 1 if aspect in HIGHER_IS_BETTER else -1
        known = [one for one in self.images if math.isfinite(one.figures.get(aspect, math.nan))]
        return sorted(known, key=lambda one: sign * one.figures[aspect])[:count]

    def to_json(self) -> dict[str, Any]:
        """Without the images themselves."""
        return {
            "base": self.base,
            "measures": {name: one.to_json() for name, one in self.measures.items()},
            "gap_per_noise_level": [one.to_json() for one in self.levels],
            "images": [
                {"name": one.name, **one.figures, "levels": list(one.levels)}
                for one in sorted(self.images, key=lambda one: -one.figures.get("gap", math.nan))
            ],
        }


OnProgress = Callable[[str, int, int], object]


def assess_base(
    base: str,
    family: ModelFamily,
    targets: Sequence[TargetImage],
    encoder: ImageEncoder,
    samples: SamplesConfig,
    *,
    side: int,
    on_progress: OnProgress = lambda what, done, total: None,
) -> BaseAssessment:
    """Measure a base on the images, with its parts as they are; nothing of it is changed.

    `samples`: with which steps, guidance and seed it draws. `side`: of the squares, in pixels, which the base
    has to be able to draw.
    """
    number = len(targets)
    on_progress("images drawn", 0, 2 * number)
    plain = _drawn(family, [one.plain for one in targets], samples, side)
    on_progress("images drawn", number, 2 * number)
    called = _drawn(family, [one.caption for one in targets], samples, side)
    on_progress("images drawn", 2 * number, 2 * number)
    images = [one.image for one in targets]
    latents, back = _through_the_vae(family, images)
    own, _ = _through_the_vae(family, plain)
    texts = [one.plain for one in targets]
    ours = losses(family, targets, latents, texts, on_progress)
    theirs = losses(family, targets, own, texts, on_progress)
    ratios = ours / theirs  # [N, TIMESTEPS]
    found: dict[Aspect, list[float]] = {
        "following": following(encoder.aligned(plain), encoder.texts(texts)),
        "ceiling": [decibels(one, other) for one, other in zip(images, back, strict=True)],
        "gap": ratios.log().mean(dim=1).exp().tolist(),
        "distance": distances(encoder.features(called), encoder.features(images)),
    }
    rows = tuple(
        ImageFigures(one.name, {name: found[name][place] for name in ASPECTS}, tuple(ratios[place].tolist()))
        for place, one in enumerate(targets)
    )
    shown = {one.name: pair for one, *pair in zip(targets, back, called, strict=True)}
    return BaseAssessment(
        base=base,
        images=rows,
        measures={name: interval_of(name, dict(enumerate(found[name]))) for name in ASPECTS},
        levels=tuple(interval_of("gap", dict(enumerate(column))) for column in ratios.T.tolist()),
        drawn={name: (pair[0], pair[1]) for name, pair in shown.items()},
    )


def interval_of(aspect: Aspect, per_image: Mapping[int, float]) -> Interval:
    """The mean over images; of the gap, which is a ratio, the geometric one."""
    if aspect != "gap":
        return mean_of(per_image)
    found = mean_of({place: math.log(value) for place, value in per_image.items()})
    return Interval(math.exp(found.value), math.exp(found.low), math.exp(found.high), found.questions)


def following(images: Tensor | None, texts: Tensor | None) -> list[float]:
    """[N, E] and [N, E] of length 1 -> of each image; NaN if the encoder reads no text, or of one image."""
    if images is None or texts is None or len(images) < 2:
        number = 0 if images is None else len(images)
        return [math.nan] * number
    cosines = images @ texts.T
    others = (cosines.sum(dim=1) - cosines.diagonal()) / (len(images) - 1)
    return list((cosines.diagonal() - others).tolist())


def distances(drawn: Tensor, targets: Tensor) -> list[float]:
    """[N, D] and [N, D] of length 1 -> of each pair; NaN of a single one, which has no others."""
    number = len(targets)
    if number < 2:
        return [math.nan] * number
    among, towards = targets @ targets.T, drawn @ targets.T
    of_targets = (among.sum(dim=1) - among.diagonal()) / (number - 1)
    of_drawn = (towards.sum(dim=1) - towards.diagonal()) / (number - 1)
    return list((of_targets - of_drawn).tolist())


def decibels(image: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio of two images of the same size; at most `MOST_DECIBELS`."""
    difference = np.asarray(image, np.float64) - np.asarray(other, np.float64)
    error = float(np.square(difference / 255).mean())
    return MOST_DECIBELS if error == 0 else min(MOST_DECIBELS, -10 * math.log10(error))


def square(image: Image.Image, side: int) -> Image.Image:
    """The middle of it, of side x side pixels."""
    return ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.LANCZOS)


def _drawn(
    family: ModelFamily, prompts: Sequence[str], samples: SamplesConfig, side: int
) -> list[Image.Image]:
    asked = [(prompt, Noise(samples.seed, place)) for place, prompt in enumerate(prompts)]
    return [square(one, side) for one in draw_asked(family, asked, samples, size=(side, side))]


@torch.no_grad()
def _through_the_vae(
    family: ModelFamily, images: Sequence[Image.Image]
) -> tuple[list[Tensor], list[Image.Image]]:
    """The mean latents [C, h, w] of each, scaled as the denoiser has them, and what they are decoded to."""
    latents, back = [], []
    with family.also_placed("vae"), in_its_precision(family):
        decoder = decoder_of(family)
        for image in images:
            pixels = torch.from_numpy(np.asarray(image, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
            mean, _ = family.encode_image(pixels.to(family.device))
            latents.append(mean[0].float())
            decoded = vaes.decode(decoder, mean)[0].float().cpu()
            levels = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
            back.append(Image.fromarray(levels.permute(1, 2, 0).numpy()))
    return latents, back


@dataclass(frozen=True)
class _KeptTexts:
    """Of a staged family those that were encoded before, as its text encoders are away by then."""

    family: ModelFamily

    def batch(self, captions: list[str]) -> Conditioning:
        return self.family.conditioning_of(captions)


def losses(
    family: ModelFamily,
    targets: Sequence[TargetImage],
    latents: Sequence[Tensor],
    captions: Sequence[str],
    on_progress: OnProgress,
) -> Tensor:
    """[N, TIMESTEPS] on the CPU: the base's error at levels from clean to noisy, unweighted.

    The noise depends on the target alone: that of its counterpart is the same.
    """
    side = latents[0].shape[-1] * family.pixels_per_latent
    geometry = torch.tensor([side, side, 0.0, 0.0, side, side], device=family.device)
    device, weight = family.device, torch.ones(1, 1, device=family.device)
    images = [
        ValidationImage(one.name, one.sha256, caption, latent.to(device), geometry, weight)
        for one, latent, caption in zip(targets, latents, captions, strict=True)
    ]
    family.keep_texts(list(dict.fromkeys(captions)))
    objective = family.objective(ObjectiveOptions()).to(device)
    autocast = None if family.precision == torch.float32 else family.precision
    placed = (family.denoiser,) if family.staged else (family.denoiser, *family.text_encoders)
    found = []
    with family.also_placed(*placed):
        for place, image in enumerate(images):
            on_progress("images measured", place, len(images))
            one = Validation([image], _KeptTexts(family), family, objective, autocast, _ROWS)
            found.append(one.losses())
    return torch.cat(found)


__all__ = ["ASPECTS", "TIMESTEPS", "BaseAssessment", "TargetImage", "assess_base"]

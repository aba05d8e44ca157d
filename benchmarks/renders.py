"""Labelled renders of the pocket world, softened so that a judge of renders can judge a VAE's images."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lora_studio.pocket.scenes import (
    BACKGROUNDS,
    CHARACTER_NAMES,
    COLOURS,
    NATIVE,
    OBJECT_NAMES,
    STYLE_NAMES,
    draw,
    sample_scene,
)
from lora_studio.pocket.stages import images_to_tensor

HEADS: dict[str, tuple[str, ...]] = {
    "object": OBJECT_NAMES + CHARACTER_NAMES,
    "colour": tuple(COLOURS),
    "background": tuple(BACKGROUNDS),
    "style": STYLE_NAMES,
}
UNLABELLED = -100  # cross_entropy's ignore_index: a character has no colour to name
_FIRST_TRAINING_SEED = 3 * 10**12  # far from the seeds of training_scene and of held_out_scenes
_FIRST_TEST_SEED = 4 * 10**12
_PLAIN_SHARE = 0.5


@dataclass(frozen=True)
class Renders:
    """Images [N, 3, 64, 64] uint8 and labels [N] by head (`UNLABELLED` where there is nothing to name)."""

    pixels: Tensor
    labels: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.pixels)


def _labels(rng: random.Random, style: str) -> dict[str, str]:
    chosen = {head: rng.choice(names) for head, names in HEADS.items()}
    other = rng.choice(STYLE_NAMES[1:])
    return chosen | {"style": style or ("plain" if rng.random() < _PLAIN_SHARE else other)}


def _colour_is_visible(labels: dict[str, str]) -> bool:
    return labels["object"] in OBJECT_NAMES


def _render(seed: int, labels: dict[str, str]) -> Tensor:
    """[1, 3, 64, 64] uint8."""
    scene = sample_scene(
        seed, name=labels["object"], colour=labels["colour"], background=labels["background"], pairs=0.0
    )
    image = draw(scene, NATIVE, NATIVE, style=labels["style"])
    return to_bytes(images_to_tensor([image]))


def _numbers(head: str, rows: list[dict[str, str]]) -> Tensor:
    names = HEADS[head]
    if head != "colour":
        return torch.tensor([names.index(row[head]) for row in rows])
    return torch.tensor([names.index(row[head]) if _colour_is_visible(row) else UNLABELLED for row in rows])


def labelled_renders(count: int, *, style: str = "", test: bool = False) -> Renders:
    """`count` single-object renders, object, colour and background uniform; training and test share no seed.

    Without `style`, half of them are plain and the rest are divided among the other styles.
    """
    first = _FIRST_TEST_SEED if test else _FIRST_TRAINING_SEED
    rows = [_labels(random.Random(first + i), style) for i in range(count)]
    pixels = torch.cat([_render(first + i, row) for i, row in enumerate(rows)])
    return Renders(pixels, {head: _numbers(head, rows) for head in HEADS})


def to_bytes(pixels: Tensor) -> Tensor:
    """-1..1 -> uint8."""
    return ((pixels + 1) * 127.5).round().to(torch.uint8)


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 -> -1..1."""
    return pixels.float().div_(127.5).sub_(1.0)


def _blurred(pixels: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of [B, 3, H, W] with `sigma` in pixels."""
    offsets = torch.arange(-3, 4, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).repeat(3, 1)
    across = F.conv2d(F.pad(pixels, (3, 3, 0, 0), mode="replicate"), kernel.view(3, 1, 1, 7), groups=3)
    return F.conv2d(F.pad(across, (0, 0, 3, 3), mode="replicate"), kernel.view(3, 1, 7, 1), groups=3)


def _shrunk(pixels: Tensor, side: int) -> Tensor:
    """Resized to `side` pixels and back."""
    small = F.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True)
    return F.interpolate(small, size=pixels.shape[-2:], mode="bilinear")


def softened(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """A quarter each sharp, blurred, shrunk and enlarged, and both; then colour jitter and noise. -1..1."""

    def draws(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    sigma = 0.4 + 0.9 * float(draws(1))
    side = round(NATIVE * (0.5 + 0.4 * float(draws(1))))
    sharp, blurred, shrunk, both = pixels.chunk(4)
    soft = [
        sharp,
        _blurred(blurred, sigma),
        _shrunk(shrunk, side),
        _blurred(_shrunk(both, side), 0.7 * sigma),
    ]
    pixels = torch.cat(soft)
    count = len(pixels)
    gain = 1 + 0.12 * (draws(count, 1, 1, 1) - 0.5) + 0.08 * (draws(count, 3, 1, 1) - 0.5)
    shift = 0.12 * (draws(count, 1, 1, 1) - 0.5) + 0.06 * (draws(count, 3, 1, 1) - 0.5)
    noise = torch.randn(pixels.shape, generator=generator) * (0.15 * draws(count, 1, 1, 1) ** 2)
    return (pixels * gain + shift + noise).clamp(-1, 1)

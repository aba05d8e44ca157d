"""The pocket world as a denoiser is shown it: latents made once, and lessons in the order of their ease."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_studio.pocket import stages
from lora_studio.pocket.scenes import BUCKETS, Scene, contact_sheet, draw, training_scene, wording

GROUP = 64  # equal-sized images
CAPTION_DROPOUT = 0.1
OBJECT_SHARE = 0.9  # of the steps in which the latents of the objects count OBJECT_WEIGHT times as much
OBJECT_WEIGHT = 4.0


class Lesson(NamedTuple):
    """One batch: [B, C, h, w] latents, captions (some empty), [B, 1, h, w] weights, and what is shown."""

    latents: Tensor
    captions: list[str]
    weights: Tensor
    scenes: list[Scene]
    numbers: list[int]  # of the scenes


def load_vae(work: Path, device: torch.device) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(work / "vae" / "done").to(device)


@torch.inference_mode()
def encode_world(work: Path, path: Path, device: torch.device, *, groups: int = 400, scale: int = 1) -> None:
    """Latents of `groups` groups of images, to `path`; the sides are `scale` times the buckets'."""
    if path.is_file():
        return
    vae = load_vae(work, device)
    shift, factor = vae.config.shift_factor or 0.0, vae.config.scaling_factor
    encoded = {}
    for group in range(groups):
        width, height = (side * scale for side in BUCKETS[group % len(BUCKETS)])
        images = [draw(training_scene(group * GROUP + i), width, height) for i in range(GROUP)]
        parts = stages.images_to_tensor(images).split(16)
        means = [vae.encode(pixels.to(device)).latent_dist.mean for pixels in parts]
        encoded[f"{group:05}"] = ((torch.cat(means) - shift) * factor).half().cpu().contiguous()
        if group % 40 == 0:
            print("encoding", group, "of", groups, flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file(encoded, temporary)
    temporary.rename(path)


def load_latents(path: Path) -> list[Tensor]:
    """The groups that `encode_world` wrote, in their order, in float32."""
    return [group.float() for _, group in sorted(load_file(path).items())]


class World:
    """Batch n of the training set: images of one bucket, redrawn from its groups, and their captions.

    The first `easy_steps` lessons are large single objects, and weigh the objects more than
    what is behind them.
    """

    def __init__(
        self, latents: list[Tensor], seed: int, steps: int, easy_steps: float, batch: int = GROUP
    ) -> None:
        self.seed, self.steps, self.easy_steps, self.size = seed, steps, easy_steps, batch
        self.buckets: dict[torch.Size, Tensor] = {}
        self.numbers: dict[torch.Size, list[int]] = {}  # of the scene of each of a bucket's rows
        self.scenes: dict[torch.Size, list[Scene]] = {}
        self.easy: dict[torch.Size, list[int]] = {}  # the rows with one large object
        for shape in dict.fromkeys(group.shape[2:] for group in latents):
            groups = [number for number, group in enumerate(latents) if group.shape[2:] == shape]
            self.buckets[shape] = torch.cat([latents[number] for number in groups])
            self.numbers[shape] = [number * GROUP + i for number in groups for i in range(GROUP)]
            scenes = [training_scene(number) for number in self.numbers[shape]]
            is_easy = [[thing.size for thing in scene.things] == ["large"] for scene in scenes]
            self.scenes[shape], self.easy[shape] = scenes, [row for row, easy in enumerate(is_easy) if easy]
        self.turns = [group.shape[2:] for group in latents[: len(BUCKETS)]]

    def batch(self, step: int) -> Lesson:
        """The step's images, of one size; a function of the step."""
        rng = random.Random(self.seed * 10**9 + step)
        shape = rng.choice(self.turns)
        of_shape = self.easy[shape] if step < self.easy_steps else range(len(self.scenes[shape]))
        draw_rows = rng.sample if len(of_shape) >= self.size else rng.choices
        rows = draw_rows(of_shape, k=self.size)
        scenes = [self.scenes[shape][row] for row in rows]
        captions = ["" if rng.random() < CAPTION_DROPOUT else wording(scene, rng) for scene in scenes]
        weighty = OBJECT_WEIGHT if step < OBJECT_SHARE * self.steps else 1.0
        weights = torch.stack([object_weights(scene, (shape[0], shape[1]), weighty) for scene in scenes])
        numbers = [self.numbers[shape][row] for row in rows]
        return Lesson(self.buckets[shape][rows], captions, weights, scenes, numbers)


def object_weights(scene: Scene, shape: tuple[int, int], weight: float) -> Tensor:
    """[1, h, w] weights of mean 1: `weight` times as much in the squares around the scene's things."""
    height, width = shape
    weights = torch.ones(1, height, width)
    for thing in scene.things:
        x, y = thing.centre[0] * width, thing.centre[1] * height
        reach = 1.1 * thing.radius * min(width, height)
        left, top = max(0, int(x - reach)), max(0, int(y - reach))
        weights[:, top : int(y + reach) + 1, left : int(x + reach) + 1] = weight
    return weights / weights.mean()


def preview(
    trainee: stages.Trainee, vae: AutoencoderKL, sample: Callable[[], Tensor], side: int, columns: int = 8
) -> None:
    """What `sample` draws with the averaged weights, as latents of about 1, to `look_STEP.png`."""
    kept = {name: p.detach().clone() for name, p in trainee.parameters.items()}
    trainee.use_average()
    latents = sample()
    with torch.no_grad():
        for name, parameter in trainee.parameters.items():
            parameter.copy_(kept[name])
        pixels = vae.decode(latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)).sample
    images = [image.resize((side, side)) for image in stages.tensor_to_images(pixels)]
    contact_sheet(images, columns).save(trainee.folder / f"look_{trainee.step:06}.png")

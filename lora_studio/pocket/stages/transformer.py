"""Stage 4 of the flow base: a small Z-Image transformer, taught on latents encoded once.

Beside the velocity it is asked, half way through its layers, which object lies where: what a word stands for
is then learned from the first steps on, and not from the little that an object's outline takes of the error.
The head that answers is left behind.
"""

from __future__ import annotations

import math
import random
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from PIL import Image, ImageDraw
from torch import Tensor, nn

from lora_studio.objectives.sigmas import LogitNormal
from lora_studio.pocket import stages
from lora_studio.pocket.scenes import OBJECT_NAMES, Scene, held_out_scenes
from lora_studio.pocket.shapes import shapes_of
from lora_studio.pocket.stages import dense
from lora_studio.pocket.stages.text import Wordings, features, lengthened, load_text
from lora_studio.pocket.stages.world import GROUP, OBJECT_SHARE, World, load_latents, load_vae, preview

BATCH = 32
SHIFT = 2.0
DRAWN = LogitNormal(math.log(3), 1.2)  # what an object is gets settled at high noise: half lie above 0.75
EASY_STEPS = 1500  # and it shows first where it is large and alone
LONG_EVERY = 10  # steps: in one, captions have more than 32 tokens, and images lie behind 64
ASKED_AFTER = 3  # the number of the layer whose answer names the objects
ASKED_WEIGHT = 0.2
MATRIX_RATE = 4e-3
_FINE = 4  # pixels drawn for one latent pixel of the map of objects


def new_transformer() -> ZImageTransformer2DModel:
    """Every block starts as one that changes nothing, and the answer as zero (arXiv 2212.09748)."""
    transformer = ZImageTransformer2DModel(**stages.configuration("flow_transformer"))
    for name, layer in transformer.named_modules():
        if isinstance(layer, nn.Linear) and ("adaLN" in name or name.endswith("2-1.linear")):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    return transformer


def new_flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=SHIFT)


def sigmas(count: int, generator: torch.Generator) -> Tensor:
    """[count] of `DRAWN`, stratified over the batch."""
    even = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return DRAWN.placed(even, 0.0, 1.0)


def velocity(transformer: nn.Module, noised: Tensor, sigma: Tensor, text: list[Tensor]) -> Tensor:
    """[B, 16, h, w] of n - x0 for latents noised to sigma [B]: a Z-Image answers with its opposite."""
    answers = transformer(list(noised.unsqueeze(2)), 1 - sigma, text, return_dict=False)[0]
    return -torch.stack(answers).squeeze(2)


def object_map(scene: Scene, shape: tuple[int, int]) -> Tensor:
    """[h, w] of which object lies at a latent pixel: 0 is none, n + 1 is `OBJECT_NAMES[n]`."""
    height, width = (side * _FINE for side in shape)
    image = Image.new("L", (width, height))
    for thing in scene.things:
        centre, radius = (
            (thing.centre[0] * width, thing.centre[1] * height),
            thing.radius * min(width, height),
        )
        for part in shapes_of(thing.name, (0, 0, 0), centre, radius, thing.tilt):
            ImageDraw.Draw(image).polygon(part.points, fill=1 + OBJECT_NAMES.index(thing.name))
    return torch.from_numpy(np.array(image)[_FINE // 2 :: _FINE, _FINE // 2 :: _FINE]).long()


def _patches(maps: Tensor) -> Tensor:
    """[B, h, w] -> [B, tokens, 4], in the order of a transformer's patches of 2 x 2."""
    b, h, w = maps.shape
    return maps.view(b, h // 2, 2, w // 2, 2).permute(0, 1, 3, 2, 4).reshape(b, h * w // 4, 4)


class Asked(nn.Module):
    """A transformer and a linear head that says, from one layer's answer, which object lies where."""

    def __init__(self, transformer: ZImageTransformer2DModel) -> None:
        super().__init__()
        self.transformer, self.kinds = transformer, len(OBJECT_NAMES) + 1
        self.head = nn.Linear(transformer.dim, 4 * self.kinds)

    def forward(self, noised: Tensor, sigma: Tensor, said: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The velocity, and [B, tokens, 4, kinds] logits of the object at each latent pixel."""
        captions, (h, w) = dense.Captions(said, lengths), noised.shape[2:]
        turns = dense.turns(self.transformer, lengths, said.shape[1], (h // 2, w // 2))
        answer, heard = dense.forward(self.transformer, noised, 1 - sigma, captions, turns, ASKED_AFTER)
        return -answer, self.head(heard.float()).unflatten(2, (4, self.kinds))

    def matrices(self) -> list[str]:
        """The parameters that Muon trains: the matrices of attention and feed-forward in all blocks."""
        return [
            name
            for name, p in self.named_parameters()
            if p.ndim == 2 and (".attention." in name or ".feed_forward." in name)
        ]


@torch.inference_mode()
def sample(
    transformer: nn.Module, text: list[Tensor], empty: Tensor, *, seed: int, guidance: float, steps: int
) -> Tensor:
    """[B, 16, 16, 16] latents by Euler steps; `guidance` 1 is none, and the pipeline's is one less."""
    scheduler = new_flow_scheduler()
    scheduler.set_timesteps(sigmas=torch.linspace(1.0, 1 / steps, steps).tolist())  # as the pipeline's
    rng = torch.Generator().manual_seed(seed)
    latents = torch.randn((len(text), 16, 16, 16), generator=rng).to(text[0].device)
    both = [empty] * len(text) + text
    for timestep in scheduler.timesteps:
        sigma = (timestep / 1000).expand(2 * len(text)).to(latents.device)
        without, given = velocity(transformer, torch.cat([latents, latents]), sigma, both).chunk(2)
        answer = without + guidance * (given - without)
        latents = scheduler.step(answer, timestep, latents, return_dict=False)[0]
    return latents


def build_transformer(work: Path, steps: int, device: torch.device) -> None:
    """Train the transformer against the finished VAE and text encoder of `work`."""
    torch.manual_seed(3)
    folder, vae, (rank, size) = work / "transformer", load_vae(work, device), stages.rank_and_size()
    encoder, tokenizer = load_text(work / "text", device)
    text_of = partial(features, encoder, tokenizer)
    latents = load_latents(folder / "latents.safetensors")
    wordings = Wordings(work / "text", folder / "captions.safetensors", len(latents) * GROUP, device)
    start = folder / "start"  # of a base that was adopted, which knows the easy lessons
    adopted = start.is_dir()
    easy = 0 if adopted else EASY_STEPS
    world = World(latents, seed=3, steps=steps, easy_steps=easy, batch=BATCH * size)
    transformer = ZImageTransformer2DModel.from_pretrained(start) if adopted else new_transformer()
    asked = Asked(transformer).to(device)
    rates = {"learning_rate": 1.5e-3, "matrix_rate": MATRIX_RATE}
    config = stages.StageConfig("transformer", steps, **rates, warmup_steps=200, decay_share=0.5)
    trainee = stages.Trainee(asked, config, folder, matrices=asked.matrices())

    def heard(step: int, numbers: list[int], captions: list[str]) -> tuple[Tensor, Tensor]:
        if step % LONG_EVERY:
            return wordings.of(numbers, captions, step)
        rng = random.Random(step)
        return dense.padded(text_of([lengthened(tokenizer, one, rng) if one else "" for one in captions]))

    def loss_at(step: int) -> Tensor:
        latents, captions, weights, scenes, numbers = world.batch(step)
        rng, mine = torch.Generator().manual_seed(step), slice(rank, None, size)
        noise, sigma = torch.randn(latents.shape, generator=rng), sigmas(len(latents), rng)
        share = sigma.view(-1, 1, 1, 1)
        noised, target = (1 - share) * latents + share * noise, noise - latents
        noised, target, sigma, weights = (t[mine].to(device) for t in (noised, target, sigma, weights))
        with stages.half_precision(device):
            answer, named = asked(noised, sigma, *heard(step, numbers[mine], captions[mine]))
        loss = ((answer.float() - target).square() * weights).mean()
        if step >= OBJECT_SHARE * steps:
            return loss
        h, w = latents.shape[2:]
        lies = _patches(torch.stack([object_map(scene, (h, w)) for scene in scenes[mine]])).to(device)
        missed = F.cross_entropy(named.flatten(0, 2).float(), lies.flatten(), reduction="none")
        return loss + ASKED_WEIGHT * (missed * _patches(weights[:, 0]).flatten()).mean()

    prompts = [scene.caption() for scene in held_out_scenes(24)]
    print("previews:", *prompts, sep="\n  ", flush=True)
    draw = partial(sample, transformer, text_of(prompts), text_of([""])[0], seed=7, guidance=4.0, steps=20)
    look = partial(preview, trainee, vae, draw, 128)
    if stages.train(trainee, loss_at, look=look, look_every=1000):
        transformer.save_pretrained(folder / "done")

"""Stage 3: the UNet, with SD1.5's module tree at a tenth of its widths, on latents encoded once."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_studio.objectives.diffusion import Diffusion
from lora_studio.pocket import stages
from lora_studio.pocket.scenes import (
    BUCKETS,
    Scene,
    contact_sheet,
    draw,
    held_out_scenes,
    training_scene,
    wording,
)
from lora_studio.pocket.stages.clip import load_pair, token_ids

BATCH = 64
GROUPS_OF_64 = 400  # 25,600 images
CAPTION_DROPOUT = 0.1
SNR_GAMMA = 5.0
HIGH_NOISE_POWER = 2 / 3
LARGE_ONLY_SHARE = 0.77  # from nothing: what an object is shows first where it is large and alone
OBJECT_SHARE = 0.9  # of the steps in which the latents of the objects count OBJECT_WEIGHT times as much
OBJECT_WEIGHT = 4.0


def new_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(**stages.configuration("unet"))


def new_scheduler() -> DDIMScheduler:
    return DDIMScheduler(**stages.configuration("scheduler"))


@torch.inference_mode()
def encode_world(work: Path, device: torch.device) -> None:
    """Latents of every group of 64 equal-sized images, made once, to `unet/latents.safetensors`."""
    path = work / "unet" / "latents.safetensors"
    if path.is_file():
        return
    vae = load_vae(work, device)
    groups = {}
    for group in range(GROUPS_OF_64):
        size = BUCKETS[group % len(BUCKETS)]
        images = [draw(training_scene(group * BATCH + i), *size) for i in range(BATCH)]
        latents = vae.encode(stages.images_to_tensor(images).to(device)).latent_dist.mean
        groups[f"{group:05}"] = (latents * vae.config.scaling_factor).half().cpu().contiguous()
        if group % 40 == 0:
            print("encoding", group, "of", GROUPS_OF_64, flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(groups, path)


def load_vae(work: Path, device: torch.device) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(work / "vae" / "done").to(device)


class World:
    """Batch n of the training set: 64 images of one bucket, redrawn from its groups, and their captions.

    The first lessons are large single objects (`easy_share` of the steps), and weigh the objects more than
    what is behind them.
    """

    def __init__(self, latents: list[Tensor], seed: int, steps: int, easy_share: float) -> None:
        self.seed, self.steps, self.easy_steps = seed, steps, easy_share * steps
        self.buckets: dict[torch.Size, Tensor] = {}
        self.scenes: dict[torch.Size, list[Scene]] = {}  # the scene of each of a bucket's rows
        self.easy: dict[torch.Size, list[int]] = {}  # the rows with one large object
        for shape in dict.fromkeys(group.shape[2:] for group in latents):
            groups = [number for number, group in enumerate(latents) if group.shape[2:] == shape]
            self.buckets[shape] = torch.cat([latents[number] for number in groups])
            scenes = [training_scene(number * BATCH + i) for number in groups for i in range(BATCH)]
            is_easy = [[thing.size for thing in scene.things] == ["large"] for scene in scenes]
            self.scenes[shape], self.easy[shape] = scenes, [row for row, easy in enumerate(is_easy) if easy]
        self.turns = [group.shape[2:] for group in latents[: len(BUCKETS)]]

    def batch(self, step: int) -> tuple[Tensor, list[str], Tensor]:
        """[64, 4, h, w] latents, 64 captions (some empty), [64, 1, h, w] weights: a function of the step."""
        rng = random.Random(self.seed * 10**9 + step)
        shape = rng.choice(self.turns)
        of_shape = self.easy[shape] if step < self.easy_steps else range(len(self.scenes[shape]))
        rows = rng.sample(of_shape, BATCH)
        scenes = [self.scenes[shape][row] for row in rows]
        captions = ["" if rng.random() < CAPTION_DROPOUT else wording(scene, rng) for scene in scenes]
        weighty = OBJECT_WEIGHT if step < OBJECT_SHARE * self.steps else 1.0
        weights = torch.stack([object_weights(scene, (shape[0], shape[1]), weighty) for scene in scenes])
        return self.buckets[shape][rows], captions, weights


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


def noised_batch(
    latents: Tensor, alphas: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noised latents, noise, timesteps stratified over the batch, and weights.

    What an object is gets settled at high noise (SNR 0.01 to 0.1), where the error in epsilon is tiny: there,
    min-SNR weights left it a hundredth of the loss and it was not learned. So the weights are those of
    arXiv 2310.08442 (1/sqrt(SNR)) up to `SNR_GAMMA` and fall like min-SNR's above it, and half of the
    timesteps lie above 630.
    """
    count = len(latents)
    noise = torch.randn(latents.shape, generator=generator)
    strata = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    timesteps = (strata.pow(HIGH_NOISE_POWER) * len(alphas)).long()
    alpha = alphas[timesteps].view(-1, 1, 1, 1)
    weight = Diffusion(alphas, "epsilon", snr_gamma=SNR_GAMMA, weighting="debiased").weight(timesteps)
    return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise, noise, timesteps, weight


@torch.inference_mode()
def sample(
    unet: UNet2DConditionModel, text: Tensor, empty: Tensor, *, seed: int, guidance: float, steps: int = 25
) -> Tensor:
    """[B, 4, 16, 16] latents by DDIM for text [B, L, D]."""
    scheduler = new_scheduler()
    scheduler.set_timesteps(steps)
    rng = torch.Generator().manual_seed(seed)
    latents = torch.randn((len(text), 4, 16, 16), generator=rng).to(text.device)
    both = torch.cat([empty.expand_as(text), text])
    for timestep in scheduler.timesteps:
        without, given = unet(torch.cat([latents, latents]), timestep, both).sample.chunk(2)
        latents = scheduler.step(without + guidance * (given - without), timestep, latents).prev_sample
    return latents


def build_unet(work: Path, steps: int, device: torch.device) -> None:
    """Train the UNet against the finished VAE and text encoder of `work`."""
    torch.manual_seed(3)
    folder, vae, (rank, size) = work / "unet", load_vae(work, device), stages.rank_and_size()
    pair, tokenizer = load_pair(work / "clip")
    pair.to(device)
    start = folder / "start"  # of a base that was adopted, which knows the easy lessons
    adopted = start.is_dir()
    groups = sorted(load_file(folder / "latents.safetensors").items())
    latents = [group.float() for _, group in groups]
    world = World(latents, seed=3, steps=steps, easy_share=0.0 if adopted else LARGE_ONLY_SHARE)
    unet = UNet2DConditionModel.from_pretrained(start) if adopted else new_unet()
    unet = unet.to(device, memory_format=torch.channels_last)
    config = stages.StageConfig("unet", steps, 1.5e-3, warmup_steps=200, decay_share=0.5 if adopted else 0.2)
    trainee = stages.Trainee(unet, config, folder)
    alphas = new_scheduler().alphas_cumprod

    def text_of(captions: list[str]) -> Tensor:
        with torch.no_grad():
            return pair.text(token_ids(tokenizer, captions).to(device)).last_hidden_state

    def loss_at(step: int) -> Tensor:
        latents, captions, shares = world.batch(step)
        noised, noise, timesteps, weight = noised_batch(latents, alphas, torch.Generator().manual_seed(step))
        batch, mine = (noised, noise, timesteps, weight, shares), slice(rank, None, size)
        noised, noise, timesteps, weight, shares = (tensor[mine].to(device) for tensor in batch)
        noised = noised.contiguous(memory_format=torch.channels_last)
        prediction = unet(noised, timesteps, text_of(captions[mine])).sample
        return (((prediction - noise).square() * shares).mean(dim=(1, 2, 3)) * weight).mean()

    prompts = [scene.caption() for scene in held_out_scenes(16)]
    print("previews:", *prompts, sep="\n  ", flush=True)
    look = partial(_look, trainee, vae, text_of(prompts), text_of([""]))
    if stages.train(trainee, loss_at, look=look, look_every=400):
        unet.to(memory_format=torch.contiguous_format).save_pretrained(folder / "done")


def _look(trainee: stages.Trainee, vae: AutoencoderKL, text: Tensor, empty: Tensor) -> None:
    """Images of held-out prompts with the averaged weights, to `look.png`."""
    kept = {name: p.detach().clone() for name, p in trainee.parameters.items()}
    trainee.use_average()
    latents = sample(trainee.module, text, empty, seed=7, guidance=4.0, steps=20)
    with torch.no_grad():
        for name, parameter in trainee.parameters.items():
            parameter.copy_(kept[name])
        pixels = vae.decode(latents / vae.config.scaling_factor).sample
    sheet = contact_sheet([image.resize((128, 128)) for image in stages.tensor_to_images(pixels)], 8)
    sheet.save(trainee.folder / f"look_{trainee.step:06}.png")

"""Stage 3: the UNet, with SD1.5's module tree at a tenth of its widths, on latents encoded once."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from lora_studio.objectives.diffusion import Diffusion
from lora_studio.pocket import stages
from lora_studio.pocket.scenes import held_out_scenes
from lora_studio.pocket.stages.clip import load_pair, token_ids
from lora_studio.pocket.stages.world import World, load_latents, load_vae, preview

SNR_GAMMA = 5.0
HIGH_NOISE_POWER = 2 / 3
LARGE_ONLY_SHARE = 0.77  # from nothing: what an object is shows first where it is large and alone


def new_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(**stages.configuration("unet"))


def new_scheduler() -> DDIMScheduler:
    return DDIMScheduler(**stages.configuration("scheduler"))


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
    latents = load_latents(folder / "latents.safetensors")
    world = World(latents, seed=3, steps=steps, easy_steps=0.0 if adopted else LARGE_ONLY_SHARE * steps)
    unet = UNet2DConditionModel.from_pretrained(start) if adopted else new_unet()
    unet = unet.to(device, memory_format=torch.channels_last)
    config = stages.StageConfig("unet", steps, 1.5e-3, warmup_steps=200, decay_share=0.5 if adopted else 0.2)
    trainee = stages.Trainee(unet, config, folder)
    alphas = new_scheduler().alphas_cumprod

    def text_of(captions: list[str]) -> Tensor:
        with torch.no_grad():
            return pair.text(token_ids(tokenizer, captions).to(device)).last_hidden_state

    def loss_at(step: int) -> Tensor:
        latents, captions, shares, *_ = world.batch(step)
        noised, noise, timesteps, weight = noised_batch(latents, alphas, torch.Generator().manual_seed(step))
        batch, mine = (noised, noise, timesteps, weight, shares), slice(rank, None, size)
        noised, noise, timesteps, weight, shares = (tensor[mine].to(device) for tensor in batch)
        noised = noised.contiguous(memory_format=torch.channels_last)
        prediction = unet(noised, timesteps, text_of(captions[mine])).sample
        return (((prediction - noise).square() * shares).mean(dim=(1, 2, 3)) * weight).mean()

    prompts = [scene.caption() for scene in held_out_scenes(16)]
    print("previews:", *prompts, sep="\n  ", flush=True)
    draw = partial(sample, unet, text_of(prompts), text_of([""]), seed=7, guidance=4.0, steps=20)
    look = partial(preview, trainee, vae, draw, 128)
    if stages.train(trainee, loss_at, look=look, look_every=400):
        unet.to(memory_format=torch.contiguous_format).save_pretrained(folder / "done")

"""Stage 1: an AutoencoderKL that makes 4 latent channels at a quarter of the size.

The posterior's spread is held at a small constant instead of being learned against a KL term: learned, it
starts at 1 and hides one or two of the four channels from the decoder for the first thousand steps.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from lora_studio.pocket import stages
from lora_studio.pocket.scenes import NATIVE, contact_sheet, draw, held_out_scenes, image_for_vae

BATCH = 16  # in each process
LATENT_NOISE = 0.07  # standard deviation, for latents of about 1


def new_vae() -> AutoencoderKL:
    return AutoencoderKL(**stages.configuration("vae"))


def _images(numbers: range, device: torch.device) -> Tensor:
    """Images of the VAE's training set, [B, 3, 64, 64] in -1..1."""
    return stages.images_to_tensor([image_for_vae(number) for number in numbers]).to(device)


def _validation_images(device: torch.device) -> Tensor:
    return stages.images_to_tensor([draw(s, NATIVE, NATIVE) for s in held_out_scenes(64)]).to(device)


def psnr(vae: AutoencoderKL, pixels: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of encode-decode on [B, 3, H, W] in -1..1 (peak-to-peak 2)."""
    with torch.inference_mode():
        again = vae.decode(vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
        return float(10 * torch.log10(4 / (again - pixels).square().mean()))


def build_vae(folder: Path, steps: int, device: torch.device) -> None:
    """Train the VAE and save it, with its latents' scale measured, as a diffusers folder."""
    torch.manual_seed(1)
    rank, size = stages.rank_and_size()
    vae = new_vae().to(device, memory_format=torch.channels_last)
    config = stages.StageConfig("vae", steps, 1e-3, decay_share=0.4, average_decay=0.99, weight_decay=0.0)
    trainee, held = stages.Trainee(vae, config, folder), _validation_images(device)

    def loss_at(step: int) -> Tensor:
        first = (step * size + rank) * BATCH
        pixels = _images(range(first, first + BATCH), device)
        posterior = vae.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(first)).to(device)
        error = vae.decode(posterior.mean + LATENT_NOISE * noise).sample - pixels
        spread = (posterior.logvar - 2 * math.log(LATENT_NOISE)).square().mean()
        energy = (posterior.mean.square().mean() - 1).square()
        flat = F.avg_pool2d(error, 4).square().mean()  # the mean colour of what one latent pixel stands for
        return error.abs().mean() + 2 * error.square().mean() + 4 * flat + 1e-3 * (spread + energy)

    def look() -> None:
        print("vae PSNR on held-out scenes", round(psnr(vae, held), 2), flush=True)
        pixels = torch.cat([held[:8], _images(range(1, 33, 4), device)])
        with torch.inference_mode():
            again = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
        contact_sheet(stages.tensor_to_images(torch.cat([pixels, again])), 16).save(folder / "look.png")

    if stages.train(trainee, loss_at, look=look, look_every=100):
        _measure_scale(vae, device)
        vae.to(memory_format=torch.contiguous_format).save_pretrained(folder / "done")


def polish_decoder(work: Path, steps: int, device: torch.device) -> None:
    """Train the decoder alone a little longer, on clean latents; the latents that the UNet learned stay."""
    torch.manual_seed(4)
    rank, size = stages.rank_and_size()
    vae = AutoencoderKL.from_pretrained(work / "vae" / "done").to(device, memory_format=torch.channels_last)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    decoder = torch.nn.ModuleList([vae.post_quant_conv, vae.decoder])
    config = stages.StageConfig("decoder", steps, 6e-4, decay_share=0.6, average_decay=0.98, weight_decay=0.0)
    trainee, held = stages.Trainee(decoder, config, work / "decoder"), _validation_images(device)

    def loss_at(step: int) -> Tensor:
        first = 10**8 + (step * size + rank) * BATCH
        pixels = _images(range(first, first + BATCH), device)
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist.mean
        error = vae.decode(latents).sample - pixels
        return error.abs().mean() + 4 * error.square().mean()

    def look() -> None:
        print("polished: PSNR on held-out scenes", round(psnr(vae, held), 2), flush=True)

    if stages.train(trainee, loss_at, look=look, look_every=100):
        vae.to(memory_format=torch.contiguous_format).save_pretrained(work / "decoder" / "done")


@torch.inference_mode()
def _measure_scale(vae: AutoencoderKL, device: torch.device) -> None:
    std = vae.encode(_images(range(0, 1024, 4), device)).latent_dist.mean.std().item()
    vae.register_to_config(scaling_factor=round(1 / std, 5))

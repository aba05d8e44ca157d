"""Stage 1: an AutoencoderKL; the first base's makes 4 latent channels at a quarter of the size.

The posterior's spread is held at a small constant instead of being learned against a KL term: learned, it
starts at 1 and hides one or two of the four channels from the decoder for the first thousand steps.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from lora_studio.pocket import stages
from lora_studio.pocket.scenes import NATIVE, contact_sheet, draw, held_out_scenes, image_for_vae


@dataclass(frozen=True)
class Lessons:
    """What one base's VAE is and how it is taught.

    `spread` is the posterior's standard deviation, for latents of about 1. With `halves`, half of the images
    are also decoded from latents averaged to half the sides, which have to give the image at half its size:
    latents that shrink as images do are smooth, and a denoiser learns smooth ones sooner (arXiv 2502.09509).
    `crop` is the side of the squares that are cut out of the images until `CROPPED` of the steps are done:
    steps of a quarter of the cost, while it is their number that counts. Until `taught` of the steps, the
    latents are taught: they are the patches' principal components, which the encoder has to name and the
    decoder to paint. Left to themselves, both knew brightness alone after hundreds of steps, and no colour.
    """

    networks: str
    side: int
    batch: int  # in each process
    spread: float
    rate: float
    flat: int  # the side in pixels of what one latent pixel stands for
    square: float = 2.0
    halves: float = 0.0
    crop: int | None = None
    taught: float = 0.0


CROPPED = 0.8
FIRST = Lessons("vae", side=NATIVE, batch=16, spread=0.07, rate=1e-3, flat=4)
FLOW = Lessons(
    "flow_vae",
    side=128,
    batch=8,
    spread=0.05,
    rate=2e-3,
    flat=8,
    square=4.0,
    halves=0.5,
    crop=64,
    taught=0.35,
)


def new_vae(lessons: Lessons = FIRST) -> AutoencoderKL:
    return AutoencoderKL(**stages.configuration(lessons.networks))


def _images(numbers: range, side: int, device: torch.device) -> Tensor:
    """Images of the VAE's training set, [B, 3, side, side] in -1..1."""
    return stages.images_to_tensor([image_for_vae(number, side) for number in numbers]).to(device)


def principal_components(side: int, patch: int, count: int) -> tuple[Tensor, Tensor]:
    """Filters [count, 3, patch, patch] and biases [count] whose convolution gives patches' latents.

    They are about 1. Their spreads keep their order, but the square root only: the finest are no noise.
    """
    pixels = _images(range(512), side, torch.device("cpu"))
    rows = F.unfold(pixels, patch, stride=patch).transpose(1, 2).flatten(0, 1).double()
    values, vectors = torch.linalg.eigh((rows - rows.mean(0)).T.cov())
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    scales = values.pow(-0.25) / values.sqrt().mean().sqrt()
    filters = (vectors * scales).T
    biases = -(filters @ rows.mean(0))
    return filters.float().view(count, 3, patch, patch).contiguous(), biases.float()


def _cropped(pixels: Tensor, side: int | None, seed: int) -> Tensor:
    """A random square of `side` pixels of each image; all of it without a side."""
    if side is None:
        return pixels
    rng, room = random.Random(seed), pixels.shape[-1] - side
    corners = [(rng.randint(0, room), rng.randint(0, room)) for _ in pixels]
    return torch.stack(
        [image[:, y : y + side, x : x + side] for image, (y, x) in zip(pixels, corners, strict=True)]
    )


def _validation_images(side: int, device: torch.device) -> Tensor:
    return stages.images_to_tensor([draw(s, side, side) for s in held_out_scenes(64)]).to(device)


def psnr(vae: AutoencoderKL, pixels: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of encode-decode on [B, 3, H, W] in -1..1 (peak-to-peak 2)."""
    with torch.inference_mode():
        squared = [(_again(vae, some) - some).square().mean() for some in pixels.split(16)]
        return float(10 * torch.log10(4 / torch.stack(squared).mean()))


def _again(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    return vae.decode(vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)


def _decoded(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    with stages.half_precision(latents.device):
        return vae.decode(latents).sample.float()


def _loss(vae: AutoencoderKL, lessons: Lessons, pixels: Tensor, wanted: Tensor | None, seed: int) -> Tensor:
    """Of [B, 3, H, W] pixels painted again, from the `wanted` latents if there are any."""
    with stages.half_precision(pixels.device):
        posterior = vae.encode(pixels).latent_dist
    mean = posterior.mean.float()
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed)).to(pixels.device)
    latents = (mean if wanted is None else wanted) + lessons.spread * noise
    error = _decoded(vae, latents) - pixels
    spread = (posterior.logvar.float() - 2 * math.log(lessons.spread)).square().mean()
    energy = (mean.square().mean() - 1).square()
    flat = F.avg_pool2d(error, lessons.flat).square().mean()  # the mean colour of one latent pixel
    loss = error.abs().mean() + lessons.square * error.square().mean() + 4 * flat + 1e-3 * (spread + energy)
    if lessons.halves:
        some = len(pixels) // 2
        half = F.avg_pool2d(pixels[:some], 2)
        loss = loss + lessons.halves * (_decoded(vae, F.avg_pool2d(latents[:some], 2)) - half).abs().mean()
    return loss if wanted is None else loss + F.mse_loss(mean, wanted)


def build_vae(folder: Path, steps: int, device: torch.device, lessons: Lessons = FIRST) -> None:
    """Train the VAE and save it, with its latents' scale measured, as a diffusers folder."""
    torch.manual_seed(1)
    (rank, size), side, batch = stages.rank_and_size(), lessons.side, lessons.batch
    vae = new_vae(lessons).to(device, memory_format=torch.channels_last)
    rate = lessons.rate
    config = stages.StageConfig("vae", steps, rate, decay_share=0.4, average_decay=0.99, weight_decay=0.0)
    trainee, held = stages.Trainee(vae, config, folder), _validation_images(side, device)
    filters, biases = (
        t.to(device) for t in principal_components(side, lessons.flat, vae.config.latent_channels)
    )

    def loss_at(step: int) -> Tensor:
        first = (step * size + rank) * batch
        pixels = _images(range(first, first + batch), side, device)
        pixels = _cropped(pixels, lessons.crop if step < CROPPED * steps else None, first)
        is_taught = step < lessons.taught * steps
        wanted = F.conv2d(pixels, filters, biases, stride=lessons.flat) if is_taught else None
        return _loss(vae, lessons, pixels, wanted, seed=first)

    def look() -> None:
        print("vae PSNR on held-out scenes", round(psnr(vae, held), 2), flush=True)
        pixels = torch.cat([held[:8], _images(range(1, 33, 4), side, device)])
        with torch.inference_mode():
            sheet = torch.cat([pixels, _again(vae, pixels)])
        contact_sheet(stages.tensor_to_images(sheet), 16).save(folder / "look.png")

    if stages.train(trainee, loss_at, look=look, look_every=100):
        _measure_scale(vae, side, device)
        vae.to(memory_format=torch.contiguous_format).save_pretrained(folder / "done")


def polish_decoder(work: Path, steps: int, device: torch.device, lessons: Lessons = FIRST) -> None:
    """Train the decoder alone a little longer, on clean latents; the latents that the UNet learned stay."""
    torch.manual_seed(4)
    (rank, size), side, batch = stages.rank_and_size(), lessons.side, lessons.batch
    vae = AutoencoderKL.from_pretrained(work / "vae" / "done").to(device, memory_format=torch.channels_last)
    parts = {"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}
    vae.requires_grad_(False)
    decoder = torch.nn.ModuleList(
        [part for name, part in sorted(parts.items(), reverse=True) if part is not None]
    )
    decoder.requires_grad_(True)
    rate = 0.6 * lessons.rate
    config = stages.StageConfig("decoder", steps, rate, decay_share=0.6, average_decay=0.98, weight_decay=0.0)
    trainee, held = stages.Trainee(decoder, config, work / "decoder"), _validation_images(side, device)

    def loss_at(step: int) -> Tensor:
        first = 10**8 + (step * size + rank) * batch
        pixels = _images(range(first, first + batch), side, device)
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist.mean
        error = _decoded(vae, latents) - pixels
        return error.abs().mean() + 4 * error.square().mean()

    def look() -> None:
        print("polished: PSNR on held-out scenes", round(psnr(vae, held), 2), flush=True)

    if stages.train(trainee, loss_at, look=look, look_every=100):
        vae.to(memory_format=torch.contiguous_format).save_pretrained(work / "decoder" / "done")


@torch.inference_mode()
def _measure_scale(vae: AutoencoderKL, side: int, device: torch.device) -> None:
    """Write the factor that makes the latents' standard deviation 1 into the configuration.

    A configuration that says where their mean lies (`shift_factor`) gets that, too.
    """
    numbers = [range(first, first + 64, 4) for first in range(0, 1024, 64)]
    means = torch.cat([vae.encode(_images(some, side, device)).latent_dist.mean for some in numbers])
    vae.register_to_config(scaling_factor=round(1 / means.std().item(), 5))
    if vae.config.shift_factor is not None:
        vae.register_to_config(shift_factor=round(means.mean().item(), 5))

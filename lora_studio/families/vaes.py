"""What differs between the kinds of VAE: how latents are scaled, and of what an image is a part or a whole.

An image may be a video's frame. A latent of the denoiser may be a cell of several of the VAE's own, channel
by channel, scaled by what a batch norm in the VAE has counted (FLUX.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_studio.processes import to_device

if TYPE_CHECKING:
    from torch import Tensor

_VIDEO = 5  # sides of a kernel that reads frames
_LATENT_SIDE = 128  # of the images that a base was made for whose VAE does not say it, as pipelines have it


class LatentScale(NamedTuple):
    """The denoiser's latents are (z - shift) * factor of the VAE's own z."""

    shift: float | Tensor  # [C, 1, 1], where each channel has its own
    factor: float | Tensor


def scale_of(config: Mapping[str, Any]) -> LatentScale:
    """By a VAE's configuration: one scale and shift, or every channel's mean and deviation."""
    import torch

    if "scaling_factor" in config:
        return LatentScale(float(config.get("shift_factor") or 0.0), float(config["scaling_factor"]))
    means, deviations = (
        torch.tensor(config[key], dtype=torch.float32)[:, None, None]
        for key in ("latents_mean", "latents_std")
    )
    return LatentScale(means, 1 / deviations)


def _counted(vae: Any) -> LatentScale:
    """By the mean and variance that its batch norm has counted."""
    deviations = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
    return LatentScale(vae.bn.running_mean[:, None, None], 1 / deviations[:, None, None])


def pixels_per_latent(config: Mapping[str, Any]) -> int:
    """How many times an image's side is its latents'."""
    return pixels_per_own(config) * cell_of(config)


def pixels_per_own(config: Mapping[str, Any]) -> int:
    """Likewise of the VAE's own latents."""
    halvings = config.get("temperal_downsample", config.get("block_out_channels", ())[1:])
    return int(2 ** len(halvings))


def cell_of(config: Mapping[str, Any]) -> int:
    """How many of the VAE's own latents a side of one of the denoiser's is."""
    return int(config["patch_size"][0]) if "batch_norm_eps" in config else 1


def native_side(config: Mapping[str, Any]) -> int:
    """Of the square images that a transformer with such a VAE was made for, in pixels."""
    side: int | None = config.get("sample_size")
    return _LATENT_SIDE * pixels_per_latent(config) if side is None else side


def latent_channels(config: Mapping[str, Any]) -> int:
    return int(config.get("latent_channels") or config["z_dim"]) * cell_of(config) ** 2


def encode(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """[B, 3, H, W] in -1..1 -> mean and deviation of the denoiser's latents, each [B, C, h, w] in float32."""
    from torch.nn.functional import pixel_unshuffle

    weight = next(vae.parameters())
    given = pixels.to(weight.device, weight.dtype)
    posterior = vae.encode(given.unsqueeze(2) if weight.dim() == _VIDEO else given).latent_dist
    mean, std = posterior.mean.float(), posterior.std.float()
    if weight.dim() == _VIDEO:
        mean, std = mean.squeeze(2), std.squeeze(2)
    mean, std = (pixel_unshuffle(one, cell_of(vae.config)) for one in (mean, std))
    shift, factor = _beside(mean, vae)
    return (mean - shift) * factor, std * factor


def decode(vae: Any, latents: Tensor) -> Tensor:
    """The denoiser's latents [B, C, h, w] -> [B, 3, H, W], about -1..1."""
    from torch.nn.functional import pixel_shuffle

    shift, factor = _beside(latents, vae)
    given = pixel_shuffle(latents / factor + shift, cell_of(vae.config))
    if next(vae.parameters()).dim() == _VIDEO:
        video: Tensor = vae.decode(given.unsqueeze(2), return_dict=False)[0]
        return video.squeeze(2)
    image: Tensor = vae.decode(given, return_dict=False)[0]
    return image


def _beside(latents: Tensor, vae: Any) -> LatentScale:
    scale = scale_of(vae.config) if cell_of(vae.config) == 1 else _counted(vae)
    return LatentScale(*(one if isinstance(one, float) else to_device(one, latents.device) for one in scale))

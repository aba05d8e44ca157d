"""What is predicted and how the error is weighted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class Noised:
    """A noised batch: what the denoiser sees and what it should answer."""

    latents: Tensor  # [B, C, H, W]
    timestep: Tensor  # [B], int64
    target: Tensor  # [B, C, H, W]
    weight: Tensor  # [B], float32

    def rows(self, wanted: slice) -> Noised:
        """Some of the batch's rows."""
        return Noised(self.latents[wanted], self.timestep[wanted], self.target[wanted], self.weight[wanted])


class Objective(Protocol):
    """Turns clean latents into a question and its answer; every random number comes from `rng`."""

    def noise(self, latents: Tensor, rng: Generator) -> Noised:
        """[B, C, H, W] -> a noised batch on the same device."""
        ...

    def noise_at(self, latents: Tensor, noise: Tensor, share: Tensor) -> Noised:
        """The same with given noise [B, C, H, W], at shares [B] in 0..1 of the way from clean to noise."""
        ...


@dataclass(frozen=True)
class Diffusion:
    """The discrete diffusion objective of Stable Diffusion (DDPM, arXiv 2006.11239, eq. 14).

    `alphas` [T] is the product of 1 - beta; `prediction` says what the base answers.
    """

    alphas: Tensor
    prediction: Literal["epsilon", "v_prediction"]
    snr_gamma: float = 5.0
    noise_offset: float = 0.0
    timesteps: Literal["stratified", "uniform"] = "stratified"
    weighting: Literal["min_snr", "debiased"] = "min_snr"

    def noise(self, latents: Tensor, rng: Generator) -> Noised:
        """Draw each sample's timestep and noise and mix them in; all draws on the CPU, so devices agree."""
        import torch

        noise = torch.randn(latents.shape, generator=rng)
        if (
            self.noise_offset
        ):  # a constant a sample and channel, so that very dark and bright pictures can be learned
            noise = noise + self.noise_offset * torch.randn((*latents.shape[:2], 1, 1), generator=rng)
        return self.noise_at(latents, noise, self._draw_shares(len(latents), rng))

    def noise_at(self, latents: Tensor, noise: Tensor, share: Tensor) -> Noised:
        """Mix given noise in, at given shares [B] of all timesteps."""
        timestep = (share * len(self.alphas)).long().clamp(max=len(self.alphas) - 1)
        noise, timestep = noise.to(latents.device), timestep.to(latents.device)
        alpha = self.alphas.to(latents.device)[timestep].view(-1, 1, 1, 1)
        noised = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents  # arXiv 2202.00512, sec. 4
        target = noise if self.prediction == "epsilon" else velocity
        return Noised(noised, timestep, target, self.weight(timestep))

    def _draw_shares(self, count: int, rng: Generator) -> Tensor:
        import torch

        share = torch.rand(count, generator=rng)
        if self.timesteps == "stratified":  # one from each of `count` equal parts, in random order
            share = (torch.randperm(count, generator=rng) + share) / count
        return share

    def weight(self, timestep: Tensor) -> Tensor:
        """[B] -> [B] weights, in the form for what is predicted.

        min_snr (arXiv 2303.09556, sec. 3.4): epsilon: min(SNR, gamma) / SNR; v: min(SNR, gamma) / (SNR + 1).
        At SNR 0 epsilon's limit, 1, is used. debiased (arXiv 2310.08442, eq. 9: 1 / sqrt(SNR) for epsilon):
        sqrt(min(SNR, gamma)) / SNR and sqrt(min(SNR, gamma)) / (SNR + 1); epsilon's SNR is at least 0.001.
        """
        import torch

        debiased = self.weighting == "debiased"
        if self.snr_gamma == 0 and not debiased:
            return torch.ones(timestep.shape, device=timestep.device)
        alpha = self.alphas.to(timestep.device)[timestep]
        snr = alpha / (1 - alpha)
        capped = snr.clamp(max=self.snr_gamma) if self.snr_gamma else snr
        if debiased:
            floor = 1e-3 if self.prediction == "epsilon" else 0.0
            snr, capped = snr.clamp(min=floor), capped.clamp(min=floor).sqrt()
        if self.prediction == "v_prediction":
            return capped / (snr + 1)
        return torch.where(snr > 0, capped / snr.clamp(min=1e-12), torch.ones_like(snr))

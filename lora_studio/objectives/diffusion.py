"""Discrete diffusion: what Stable Diffusion 1, 2 and XL were trained with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lora_studio.errors import RecipeError
from lora_studio.objectives.base import NoisyBatch, Objective, meaningless
from lora_studio.objectives.timesteps import Timesteps
from lora_studio.processes import to_device

_OF_FLOW = "which has timesteps in place of flow matching's sigmas"
_MEAN_NOTHING = {
    "density": f"{_OF_FLOW}; leave it out, and see objective.timestep_bias",
    "shift": f"{_OF_FLOW}; leave it out, and see objective.timestep_bias",
    "sigma_weighting": f"{_OF_FLOW}; leave it out, and see objective.weighting",
}


@dataclass(frozen=True)
class Diffusion(Objective):
    """The discrete diffusion objective of Stable Diffusion (DDPM, arXiv 2006.11239, eq. 14).

    `alphas` [T] is the product of 1 - beta; `prediction` says what the base predicts.
    """

    weighs_by_snr: ClassVar[bool] = True

    alphas: Tensor
    prediction: Literal["epsilon", "v_prediction"]

    def __post_init__(self) -> None:
        """Raises RecipeError for options that mean nothing here, one sentence each."""
        if faults := list(meaningless(self, _MEAN_NOTHING, "was trained by discrete diffusion")):
            raise RecipeError("\n".join(faults))

    def timesteps_of(self, shape: tuple[int, ...]) -> Timesteps:
        return Timesteps(self.timesteps, *self.timestep_range, self.timestep_bias)

    def to(self, device: torch.device) -> Diffusion:
        return replace(self, alphas=self.alphas.to(device))

    def noise_at(self, clean: Tensor, noise: Tensor, share: Tensor, seen: Tensor | None = None) -> NoisyBatch:
        """At the timestep in whose part of 0..1 the share lies."""
        device, steps = clean.device, len(self.alphas)
        timestep = to_device((share * steps).long().clamp(max=steps - 1), device)
        noise = to_device(noise, device)
        seen = noise if seen is None else to_device(seen, device)
        alpha = self.alphas.to(device)[timestep].view(-1, 1, 1, 1)
        noised = alpha.sqrt() * clean + (1 - alpha).sqrt() * seen
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean  # arXiv 2202.00512, sec. 4
        target = noise if self.prediction == "epsilon" else velocity
        return NoisyBatch(noised, timestep, target, self.weight(timestep))

    def weight(self, timestep: Tensor) -> Tensor:
        """[B] -> [B] weights, in the form for what is predicted.

        min_snr (arXiv 2303.09556, sec. 3.4): epsilon: min(SNR, gamma) / SNR; v: min(SNR, gamma) / (SNR + 1).
        At SNR 0 epsilon's limit, 1, is used. debiased (arXiv 2310.08442, eq. 9: 1 / sqrt(SNR) for epsilon):
        sqrt(min(SNR, gamma)) / SNR and sqrt(min(SNR, gamma)) / (SNR + 1); epsilon's SNR is at least 0.001.
        """
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

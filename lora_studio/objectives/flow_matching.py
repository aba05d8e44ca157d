"""Flow matching (rectified flow, arXiv 2209.03003): the straight way from an image to noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lora_studio.errors import RecipeError
from lora_studio.objectives.base import NoisyBatch, Objective, ObjectiveOptions, meaningless
from lora_studio.objectives.sigmas import FlowSchedule, StaticShift
from lora_studio.objectives.timesteps import Timesteps
from lora_studio.processes import to_device

_BY_SIGMA = "whose loss is not weighted by a signal-to-noise ratio; leave it out"
_FROM_NOISE = (
    "whose way to noise ends at noise alone, so very dark and bright images are learned without; leave it out"
)
_MEAN_NOTHING = {  # option -> why, and what to do
    "weighting": _BY_SIGMA,
    "snr_gamma": f"{_BY_SIGMA}, or set it to 0",
    "noise_offset": f"{_FROM_NOISE}, or set it to 0",
    "multires_noise": f"{_FROM_NOISE}, or set it to 0",
}


@dataclass(frozen=True)
class FlowMatching(Objective):
    """At sigma s in 0..1 latents are (1 - s) x0 + s n, and what is predicted is the velocity n - x0.

    s is the share of the way and the `timestep` of the noisy batch, which each family turns into what its
    denoiser takes. Raises RecipeError for options that mean nothing here, one sentence each.
    """

    is_flow: ClassVar[bool] = True

    schedule: FlowSchedule

    def __post_init__(self) -> None:
        if faults := list(meaningless(self, _MEAN_NOTHING, "was trained by flow matching")):
            raise RecipeError("\n".join(faults))

    def timesteps_of(self, shape: tuple[int, ...]) -> Timesteps:
        """Those of the base's schedule, shifted for the size, within the range that the recipe asks for."""
        among = self.schedule.distribution(shape[-2], shape[-1])
        return Timesteps(self.timesteps, *self.timestep_range, self.timestep_bias, among)

    def to(self, device: torch.device) -> FlowMatching:
        return self

    def noise_at(self, clean: Tensor, noise: Tensor, share: Tensor, seen: Tensor | None = None) -> NoisyBatch:
        """As diffusers' FlowMatchEulerDiscreteScheduler mixes, which goes on along the same velocity."""
        device, share = clean.device, share.float()
        sigma, weight = to_device(share, device), to_device(self.schedule.loss_weight(share), device)
        noise = to_device(noise, device)
        seen = noise if seen is None else to_device(seen, device)
        mixed = sigma.view(-1, 1, 1, 1)
        return NoisyBatch((1 - mixed) * clean + mixed * seen, sigma, noise - clean, weight)


def as_asked(schedule: FlowSchedule, options: ObjectiveOptions) -> FlowSchedule:
    """A base's own schedule with what the recipe wants otherwise."""
    wanted: dict[str, object] = {}
    if options.density != "auto":
        wanted["density"] = options.density
    if options.shift != "auto":
        wanted["shift"] = StaticShift(options.shift)
    if options.sigma_weighting != "none":
        wanted["weighting"] = options.sigma_weighting
    return replace(schedule, **wanted)  # type: ignore[arg-type]

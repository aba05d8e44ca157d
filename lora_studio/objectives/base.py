"""What objectives have in common: the loop sees an `Objective`, never a concrete one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from lora_studio.objectives.noise import pyramid
from lora_studio.objectives.timesteps import DrawPosition, Spread, Timesteps

Density = Literal["auto", "logit_normal", "uniform", "weighted"]
SigmaWeighting = Literal["none", "bell", "cosmap"]


@dataclass(frozen=True)
class NoisyBatch:
    """A noised batch: what the denoiser sees and what it should predict."""

    latents: Tensor  # [B, C, H, W]
    timestep: Tensor  # [B], as the objective has it: an index, int64, or the share of noise, float32
    target: Tensor  # [B, C, H, W]
    weight: Tensor  # [B], float32

    def rows(self, wanted: slice) -> NoisyBatch:
        tensors = self.latents, self.timestep, self.target, self.weight
        return NoisyBatch(*(tensor[wanted] for tensor in tensors))


@dataclass(frozen=True, kw_only=True)
class ObjectiveOptions:
    """The recipe's options, as plain values; what each does is said there."""

    snr_gamma: float = 5.0
    noise_offset: float = 0.0
    timesteps: Spread = "stratified"
    weighting: Literal["min_snr", "debiased"] = "min_snr"
    timestep_range: tuple[float, float] = (0.0, 1.0)
    timestep_bias: float = 0.0
    multires_noise: float = 0.0
    input_perturbation: float = 0.0
    loss: Literal["l2", "huber", "smooth_l1"] = "l2"
    loss_delta: float = 1.0
    density: Density = "auto"
    shift: float | Literal["auto"] = "auto"
    sigma_weighting: SigmaWeighting = "none"


def meaningless(options: ObjectiveOptions, why: Mapping[str, str], base: str) -> Iterator[str]:
    """Why each of the options is refused that asks for something that a kind of base does not have.

    At its default, and switched off, an option asks for nothing.
    """
    defaults = {one.name: one.default for one in fields(ObjectiveOptions)}
    for name, reason in why.items():
        value = getattr(options, name)
        if value not in (defaults[name], 0):
            yield f"objective.{name} is {value!r}, but the base {base}, {reason}."


@dataclass(frozen=True)
class Objective(ObjectiveOptions, ABC):
    """Noises clean latents, and weighs predictions; every random number comes from `rng` and `turn`."""

    is_flow: ClassVar[bool] = False  # whether the way from image to noise is straight, and sigma its share
    weighs_by_snr: ClassVar[bool] = False  # whether `weighting` and `snr_gamma` mean anything to it

    @abstractmethod
    def to(self, device: torch.device) -> Objective:
        """The same with its tables there, where the latents are, so that no step has to send them."""

    @abstractmethod
    def timesteps_of(self, shape: tuple[int, ...]) -> Timesteps:
        """How often which shares of the way to noise are drawn for latents [B, C, H, W] of this shape."""

    @abstractmethod
    def noise_at(self, clean: Tensor, noise: Tensor, share: Tensor, seen: Tensor | None = None) -> NoisyBatch:
        """With given noise [B, C, H, W], at shares [B] in 0..1 of the way from clean to noise.

        `seen`: the noise in the latents, if not the one in the target: arXiv 2301.11706, algorithm 1.
        """

    def noise(self, latents: Tensor, rng: Generator, turn: DrawPosition | None = None) -> NoisyBatch:
        """Draw each sample's timestep and noise and mix them in; all draws on the CPU, so devices agree."""
        return self.noise_at(latents, *self._draws(latents.shape, rng, turn))

    def shares(self, shape: tuple[int, ...], rng: Generator, turn: DrawPosition | None) -> Tensor:
        """[B] in 0..1: what `noise` draws for latents of this shape, whose noise has to be drawn first."""
        return self._draws(shape, rng, turn)[1]

    def _draws(
        self, shape: tuple[int, ...], rng: Generator, turn: DrawPosition | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Noise [B, C, H, W], shares [B] of all timesteps, and the noise that is seen if it is another."""
        noise = torch.randn(shape, generator=rng)
        if self.noise_offset:  # a constant a sample and channel: very dark and bright images can be learned
            noise = noise + self.noise_offset * torch.randn((*shape[:2], 1, 1), generator=rng)
        share = self.timesteps_of(shape).draw(shape[0], rng, turn)
        if self.multires_noise:
            noise = pyramid(noise, self.multires_noise, rng)
        if not self.input_perturbation:
            return noise, share, None
        return noise, share, noise + self.input_perturbation * torch.randn(shape, generator=rng)

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """With e the difference and d `loss_delta`.

        l2: e². huber, twice Huber's of 1964, so l2 near 0: e² up to |e| = d, from there on 2 d |e| - d².
        smooth_l1 (arXiv 1504.08083, eq. 3, as published): huber divided by 2 d, so with a small d the error
        counts by its size, not by its square.
        """
        if self.loss == "huber":
            return 2 * F.huber_loss(prediction, target, reduction="none", delta=self.loss_delta)
        if self.loss == "smooth_l1":
            return F.smooth_l1_loss(prediction, target, reduction="none", beta=self.loss_delta)
        return F.mse_loss(prediction, target, reduction="none")

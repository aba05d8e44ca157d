"""What is predicted, how the error is weighted, and which timesteps are learned how often."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from lora_studio.processes import to_device
from lora_studio.rng import generator

MOST_LEVELS = 6  # of coarser noise, each half as large as the one before


@dataclass(frozen=True)
class NoisyBatch:
    """A noised batch: what the denoiser sees and what it should predict."""

    latents: Tensor  # [B, C, H, W]
    timestep: Tensor  # [B], int64
    target: Tensor  # [B, C, H, W]
    weight: Tensor  # [B], float32

    def rows(self, wanted: slice) -> NoisyBatch:
        tensors = self.latents, self.timestep, self.target, self.weight
        return NoisyBatch(*(tensor[wanted] for tensor in tensors))


class Objective(Protocol):
    """Noises clean latents, and weighs predictions; every random number comes from `rng` and `turn`."""

    @property
    def timesteps_wanted(self) -> Timesteps: ...

    def to(self, device: torch.device) -> Objective:
        """The same with its tables there, where the latents are, so that no step has to send them."""

    def noise(self, latents: Tensor, rng: Generator, turn: DrawPosition | None = None) -> NoisyBatch:
        """[B, C, H, W] -> a noised batch on the same device; `turn`: its place in the run."""

    def shares(self, shape: tuple[int, ...], rng: Generator, turn: DrawPosition | None) -> Tensor:
        """[B] in 0..1: the shares of the way to noise that `noise` draws for latents of this shape."""

    def noise_at(self, clean: Tensor, noise: Tensor, share: Tensor) -> NoisyBatch:
        """The same with given noise [B, C, H, W], at shares [B] in 0..1 of the way from clean to noise."""

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """How far off the prediction is, number by number: [B, C, H, W], not negative."""


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


@dataclass(frozen=True)
class Diffusion(ObjectiveOptions):
    """The discrete diffusion objective of Stable Diffusion (DDPM, arXiv 2006.11239, eq. 14).

    `alphas` [T] is the product of 1 - beta; `prediction` says what the base predicts.
    """

    alphas: Tensor
    prediction: Literal["epsilon", "v_prediction"]

    @property
    def timesteps_wanted(self) -> Timesteps:
        return Timesteps(self.timesteps, *self.timestep_range, self.timestep_bias)

    def to(self, device: torch.device) -> Diffusion:
        return replace(self, alphas=self.alphas.to(device))

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
        share = self.timesteps_wanted.draw(shape[0], rng, turn)
        if self.multires_noise:
            noise = pyramid(noise, self.multires_noise, rng)
        if not self.input_perturbation:
            return noise, share, None
        return noise, share, noise + self.input_perturbation * torch.randn(shape, generator=rng)

    def noise_at(self, clean: Tensor, noise: Tensor, share: Tensor, seen: Tensor | None = None) -> NoisyBatch:
        """`seen`: the noise in the latents, if not the one in the target: arXiv 2301.11706, algorithm 1."""
        device, steps = clean.device, len(self.alphas)
        timestep = to_device((share * steps).long().clamp(max=steps - 1), device)
        noise = to_device(noise, device)
        seen = noise if seen is None else to_device(seen, device)
        alpha = self.alphas.to(device)[timestep].view(-1, 1, 1, 1)
        noised = alpha.sqrt() * clean + (1 - alpha).sqrt() * seen
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean  # arXiv 2202.00512, sec. 4
        target = noise if self.prediction == "epsilon" else velocity
        return NoisyBatch(noised, timestep, target, self.weight(timestep))

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


def pyramid(white: Tensor, discount: float, rng: Generator) -> Tensor:
    """White noise [B, C, H, W] with ever coarser noise added, level n times discount^n.

    Multi-resolution noise as J. Whitaker published it in 2023, but with steps of 2 instead of random ones and
    with a variance of exactly 1 at every position, which is what the noise schedule takes for granted.
    """
    height, width = white.shape[2:]
    total, variance = white, 1.0
    for level in range(1, MOST_LEVELS + 1):
        size = max(1, height >> level), max(1, width >> level)
        rows, columns = _enlarging(height, size[0]), _enlarging(width, size[1])
        coarse = torch.randn((*white.shape[:2], *size), generator=rng)
        total = total + discount**level * (rows @ coarse @ columns.T)
        variance += discount ** (2 * level)
        if size == (1, 1):
            break
    return total / variance**0.5


def _enlarging(to: int, size: int) -> Tensor:
    """[to, size]: linear interpolation whose rows have norm 1, so that white noise keeps its strength."""
    matrix = F.interpolate(torch.eye(size)[None], size=to, mode="linear", align_corners=False)[0].T
    return matrix / matrix.norm(dim=1, keepdim=True)


Spread = Literal["stratified", "low_variance", "uniform"]
TURNS = 16  # micro-batches that share their parts under low_variance


class DrawPosition(NamedTuple):
    """A micro-batch's place in its run."""

    seed: int
    number: int  # counted over the whole run, from 0


@dataclass(frozen=True)
class Timesteps:
    """Draws shares of the way from `lowest` to `highest`, more at high noise with a `bias` above 0.

    With x the share of the way within the range, the density is (1 + bias) x^bias; below 0 it is mirrored,
    (1 - bias) (1 - x)^-bias.
    """

    spread: Spread = "stratified"
    lowest: float = 0.0
    highest: float = 1.0
    bias: float = 0.0

    def draw(self, count: int, rng: Generator, turn: DrawPosition | None = None) -> Tensor:
        """[count] in lowest..highest, float32; the draws of low_variance depend on the turn alone."""
        if self.spread == "low_variance" and turn is not None:
            even = _even_over_turns(count, turn)
        else:
            even = torch.rand(count, generator=rng)
            if self.spread != "uniform":  # one from each of `count` equal parts, in random order
                even = (torch.randperm(count, generator=rng) + even) / count
        return self.placed(even)

    def placed(self, even: Tensor) -> Tensor:
        """Evenly spread shares [B] in 0..1 -> shares with this density: its inverse distribution function."""
        if self.bias > 0:
            even = even ** (1 / (1 + self.bias))
        elif self.bias < 0:
            even = 1 - (1 - even) ** (1 / (1 - self.bias))
        return self.lowest + (self.highest - self.lowest) * even

    def density(self, share: Tensor) -> Tensor:
        """[N] in 0..1 -> what is wanted there; 1 where all of them are alike."""
        width = self.highest - self.lowest
        within = (share - self.lowest) / width
        near = within if self.bias >= 0 else 1 - within
        wanted = (1 + abs(self.bias)) * near.clamp(0, 1) ** abs(self.bias) / width
        return torch.where((within >= 0) & (within < 1), wanted, torch.zeros_like(wanted))


def _even_over_turns(count: int, turn: DrawPosition) -> Tensor:
    """[count] in 0..1, one from each of `count` equal parts; TURNS turns in a row share these parts.

    Each turn has one of TURNS parts of a part, so that so many turns with as many rows have drawn once from
    each of count * TURNS equal parts.
    """
    block, place = divmod(turn.number, TURNS)
    common = generator(turn.seed, "timesteps", block, count)
    order = torch.rand(count, TURNS, generator=common).argsort(dim=1)[:, place]
    own = generator(turn.seed, "timesteps", "of turn", turn.number)
    inner = (order + torch.rand(count, generator=own)) / TURNS
    return ((torch.arange(count) + inner) / count)[torch.randperm(count, generator=own)]

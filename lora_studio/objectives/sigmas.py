"""Which sigmas of flow matching are drawn how often and count how much: what a base says of itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor

from lora_studio.objectives.timesteps import Distribution

Density = Literal["logit_normal", "uniform", "weighted"]
Weighting = Literal["none", "bell", "cosmap"]
PARTS = 4096  # of 0..1, within which "weighted" draws sigmas alike
_MOST_DEVIATIONS = 37.0  # float64 knows no probabilities further out in a normal distribution's tail
_FARTHEST = math.log(99)  # the logit of 0.99, from which on or up to which a range of 0.01 may reach

Share = TypeVar("Share", float, Tensor)


def shifted(share: Share, factor: float) -> Share:
    """In 0..1, moved towards noise by a factor above 1 (arXiv 2403.03206, eq. 23); 1 / factor moves back."""
    return factor * share / (1 + (factor - 1) * share)


class Shift(Protocol):
    """How far sigmas are shifted for an image of so many tokens."""

    def factor(self, tokens: int) -> float: ...


@dataclass(frozen=True)
class StaticShift:
    """The same for all sizes; 1 is none."""

    by: float = 1.0

    def factor(self, tokens: int) -> float:
        return self.by


@dataclass(frozen=True)
class DynamicShift:
    """exp(mu), with mu on the straight line through `base_shift` and `max_shift`, and beyond them, too.

    So FLUX.1's pipeline has it: diffusers' `calculate_shift`, and its schedulers' "exponential" `time_shift`.
    """

    base_shift: float = 0.5
    max_shift: float = 1.15
    base_tokens: int = 256
    max_tokens: int = 4096

    def factor(self, tokens: int) -> float:
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        return math.exp(self.base_shift + slope * (tokens - self.base_tokens))


@dataclass(frozen=True)
class LogitNormal:
    """sigmoid(z) with z normal (arXiv 2403.03206, sec. 3.1); shifted by a, its mean is log(a) larger.

    Raises ValueError if a range at an end of 0..1 would be out of float64's reach.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < _FARTHEST + abs(self.mean) <= self.std * _MOST_DEVIATIONS:
            raise ValueError(
                f"logit-normal draws with mean {self.mean} and std {self.std} are all but one number"
            )

    def placed(self, even: Tensor, lowest: float, highest: float) -> Tensor:
        side, low, high = self._ends(lowest, highest)
        normal = side * torch.special.ndtri(low + (high - low) * even.double())
        return torch.sigmoid(self.mean + self.std * normal).clamp(lowest, highest).float()

    def reached(self, share: Tensor, lowest: float, highest: float) -> Tensor:
        side, low, high = self._ends(lowest, highest)
        return (torch.special.ndtr(side * self._normal(share)) - low) / (high - low)

    def density(self, share: Tensor, lowest: float, highest: float) -> Tensor:
        """0 at 0 and 1."""
        _, low, high = self._ends(lowest, highest)
        share = share.double()
        bell = torch.exp(-(self._normal(share) ** 2) / 2) / (math.sqrt(2 * math.pi) * self.std)
        found = bell / (share * (1 - share)) / abs(high - low)
        return torch.where((share > 0) & (share < 1), found, torch.zeros_like(found))

    def _normal(self, share: Tensor) -> Tensor:
        return (torch.logit(share.double()) - self.mean) / self.std

    def _ends(self, lowest: float, highest: float) -> tuple[int, float, float]:
        """How much lies below a range's ends; with -1, above: in the upper half only that has its digits."""
        low, high = ((_logit(one) - self.mean) / self.std for one in (lowest, highest))
        side = -1 if low > 0 else 1
        return side, math.erfc(-side * low / math.sqrt(2)) / 2, math.erfc(-side * high / math.sqrt(2)) / 2


@dataclass(frozen=True)
class Weighted:
    """Drawn alike within each of N equal parts of 0..1, in proportion to `weights` [N], and then shifted."""

    weights: Tensor  # float64
    factor: float = 1.0

    def placed(self, even: Tensor, lowest: float, highest: float) -> Tensor:
        """By linear interpolation between the parts' ends."""
        low, high = self._below(_pair(lowest, highest))
        wanted, ends = low + (high - low) * even.double(), self._ends
        part = (torch.searchsorted(ends, wanted, right=True) - 1).clamp(0, len(self.weights) - 1)
        within = (wanted - ends[part]) / (ends[part + 1] - ends[part]).clamp(min=1e-300)
        share = (part + within.clamp(0, 1)) / len(self.weights)
        return shifted(share, self.factor).clamp(lowest, highest).float()

    def reached(self, share: Tensor, lowest: float, highest: float) -> Tensor:
        low, high = self._below(_pair(lowest, highest))
        return (self._below(share) - low) / (high - low)

    def density(self, share: Tensor, lowest: float, highest: float) -> Tensor:
        """Within a part that of its middle."""
        low, high = self._below(_pair(lowest, highest))
        back, share = 1 / self.factor, share.double()
        slope = back / (1 + (back - 1) * share) ** 2
        part, _ = self._part(share)
        return (self.weights / self.weights.mean())[part] * slope / (high - low)

    @property
    def _ends(self) -> Tensor:
        """[N + 1] in 0..1: how much lies below each part, and 1."""
        total = self.weights.cumsum(0)
        return torch.cat([total.new_zeros(1), total / total[-1]])

    def _part(self, share: Tensor) -> tuple[Tensor, Tensor]:
        """In which part a shifted share lies, and where in it in 0..1."""
        place = shifted(share.double(), 1 / self.factor) * len(self.weights)
        part = place.long().clamp(0, len(self.weights) - 1)
        return part, place - part

    def _below(self, share: Tensor) -> Tensor:
        part, within = self._part(share)
        return self._ends[part] + within * self._ends.diff()[part]


def _logit(share: float) -> float:
    return math.log(share / (1 - share)) if 0 < share < 1 else (share - 0.5) * math.inf


def _pair(lowest: float, highest: float) -> Tensor:
    return torch.tensor([lowest, highest], dtype=torch.float64)


@dataclass(frozen=True)
class FlowSchedule:
    """How often a base's sigmas are drawn, and how much their losses count.

    logit_normal: of normal numbers with `mean` and `std`; uniform: all alike; both are then shifted.
    weighted: uniform ones in proportion to the weight, which the loss then does not have again: that is what
    uniform sigmas with weighted losses come to, but for a constant and with less variance.
    """

    density: Density = "logit_normal"
    mean: float = 0.0
    std: float = 1.0
    weighting: Weighting = "none"
    weights: tuple[
        float, ...
    ] = ()  # two or more, in place of `weighting`: at even sigmas from 0 to 1, and linear between
    shift: Shift = StaticShift()
    patch: int = 2  # latents that a side of an image's token has

    def factor(self, height: int, width: int) -> float:
        """By which sigmas of latents of this size are shifted."""
        return self.shift.factor(-(-height // self.patch) * -(-width // self.patch))

    def distribution(self, height: int, width: int) -> Distribution:
        """Of the sigmas of latents of this size, shifted."""
        factor = self.factor(height, width)
        if self.density == "logit_normal":
            return LogitNormal(self.mean + math.log(factor), self.std)
        if self.density == "uniform":
            return Weighted(torch.ones(1, dtype=torch.float64), factor)
        middles = (torch.arange(PARTS, dtype=torch.float64) + 0.5) / PARTS
        return Weighted(self.weight_at(shifted(middles, factor)), factor)

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """[B] in 0..1 -> [B], float32: what the losses there count; 1 where the draws say it."""
        return (torch.ones_like(sigma) if self.density == "weighted" else self.weight_at(sigma)).float()

    def weight_at(self, sigma: Tensor) -> Tensor:
        """[N] in 0..1 -> [N], whose mean over 0..1 is 1.

        cosmap: 2 / (pi (1 - 2 s + 2 s²)), the density of arXiv 2403.03206, sec. 3.1, with which diffusers'
        examples weigh the loss. bell: exp(-2 (s - 1/2)²) - exp(-1/2) by its mean, as ai-toolkit weighs linear
        timesteps.
        """
        if self.weights:
            table = torch.tensor(self.weights, dtype=sigma.dtype, device=sigma.device)
            mean = torch.trapezoid(table) / (len(table) - 1)
            place = sigma * (len(table) - 1)
            part = place.long().clamp(max=len(table) - 2)
            return torch.lerp(table[part], table[part + 1], place - part) / mean
        if self.weighting == "cosmap":
            return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))
        if self.weighting == "bell":
            lowest = math.exp(-0.5)
            total = math.sqrt(math.pi / 2) * math.erf(math.sqrt(0.5)) - lowest
            return (torch.exp(-2 * (sigma - 0.5) ** 2) - lowest) / total
        return torch.ones_like(sigma)

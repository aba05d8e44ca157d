"""Which shares of the way to noise are learned how often, and how evenly they are spread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from lora_studio.rng import generator

Spread = Literal["stratified", "low_variance", "uniform"]
TURNS = 16  # micro-batches that share their parts under low_variance


class DrawPosition(NamedTuple):
    """A micro-batch's place in its run."""

    seed: int
    number: int  # counted over the whole run, from 0


class Distribution(Protocol):
    """Of shares in 0..1 of the way to noise, kept to a range of them."""

    def placed(self, even: Tensor, lowest: float, highest: float) -> Tensor:
        """Evenly spread numbers [B] in 0..1 -> shares in lowest..highest: the inverse of `reached`."""

    def reached(self, share: Tensor, lowest: float, highest: float) -> Tensor:
        """[N] in lowest..highest -> how much of the range's draws, in 0..1, lies below."""

    def density(self, share: Tensor, lowest: float, highest: float) -> Tensor:
        """[N] in lowest..highest -> the derivative of `reached`."""


@dataclass(frozen=True)
class Uniform:
    """All shares alike."""

    def placed(self, even: Tensor, lowest: float, highest: float) -> Tensor:
        return lowest + (highest - lowest) * even

    def reached(self, share: Tensor, lowest: float, highest: float) -> Tensor:
        return (share - lowest) / (highest - lowest)

    def density(self, share: Tensor, lowest: float, highest: float) -> Tensor:
        return torch.full_like(share, 1 / (highest - lowest))


@dataclass(frozen=True)
class Timesteps:
    """Draws shares of the way from `lowest` to `highest`, more at high noise with a `bias` above 0.

    With x how much of the range's draws lies below a share, which for uniform ones is its share of the range,
    the density is (1 + bias) x^bias times theirs; below 0 it is mirrored, (1 - bias) (1 - x)^-bias.
    """

    spread: Spread = "stratified"
    lowest: float = 0.0
    highest: float = 1.0
    bias: float = 0.0
    among: Distribution = Uniform()

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
        """Evenly spread numbers [B] in 0..1 -> shares with this density."""
        if self.bias > 0:
            even = even ** (1 / (1 + self.bias))
        elif self.bias < 0:
            even = 1 - (1 - even) ** (1 / (1 - self.bias))
        return self.among.placed(even, self.lowest, self.highest)

    def density(self, share: Tensor) -> Tensor:
        """[N] in 0..1 -> what is wanted there; 1 where all of them are alike."""
        inside = share.clamp(self.lowest, self.highest)
        reached = self.among.reached(inside, self.lowest, self.highest)
        near = (reached if self.bias >= 0 else 1 - reached).clamp(0, 1)
        wanted = (1 + abs(self.bias)) * near ** abs(self.bias)
        wanted = wanted * self.among.density(inside, self.lowest, self.highest)
        return torch.where((share >= self.lowest) & (share < self.highest), wanted, torch.zeros_like(wanted))


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

"""Which timesteps are learned, and how often: a density over the way from clean (0) to noise (1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from lora_studio.rng import generator

if TYPE_CHECKING:
    from torch import Generator, Tensor

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
        import torch

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
        import torch

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
    import torch

    block, place = divmod(turn.number, TURNS)
    common = generator(turn.seed, "timesteps", block, count)
    order = torch.rand(count, TURNS, generator=common).argsort(dim=1)[:, place]
    own = generator(turn.seed, "timesteps", "of turn", turn.number)
    inner = (order + torch.rand(count, generator=own)) / TURNS
    return ((torch.arange(count) + inner) / count)[torch.randperm(count, generator=own)]

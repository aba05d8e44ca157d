"""LoHa (arXiv 2108.06098, 2309.14859): W' = W + scale * (w1_a @ w1_b) * (w2_a @ w2_b), entry by entry."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lora_studio.adapters.kind import (
    NO_INPUTS,
    AdapterKind,
    ChangeInputs,
    Draws,
    Factors,
    Tensors,
    flat_size,
    normal,
)


class Loha(AdapterKind):
    """`w1_a` and `w2_a` [out, r], `w1_b` and `w2_b` [r, in * k * k]; together of rank r * r."""

    degree: ClassVar[int] = 4
    is_product: ClassVar[bool] = True
    faster: ClassVar[frozenset[str]] = frozenset({"w2_a"})

    def start(self, shape: torch.Size, rank: int, draws: Draws, weight: Tensor | None) -> dict[str, Tensor]:
        """As LyCORIS: normal, and `w2_a` zero."""
        across = (rank, flat_size(shape))
        return {
            "w1_a": normal((shape[0], rank), draws("w1_a"), std=0.1),
            "w1_b": normal(across, draws("w1_b"), std=1.0),
            "w2_a": torch.zeros(shape[0], rank),
            "w2_b": normal(across, draws("w2_b"), std=1.0),
        }

    def change(self, tensors: Tensors, scale: float, inputs: ChangeInputs = NO_INPUTS) -> Tensor:
        return scale * (tensors["w1_a"] @ tensors["w1_b"]) * (tensors["w2_a"] @ tensors["w2_b"])

    def factors(self, tensors: Tensors, scale: float) -> Factors | None:
        """Every product of two ranks is a rank; None where those are more than the weight has itself."""
        up = torch.einsum("or,os->ors", tensors["w1_a"], tensors["w2_a"]).flatten(1)
        down = torch.einsum("ri,si->rsi", tensors["w1_b"], tensors["w2_b"]).flatten(0, 1)
        return Factors(down, up * scale) if len(down) <= min(len(up), down.shape[1]) else None


LOHA = Loha()

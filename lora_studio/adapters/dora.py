"""DoRA (arXiv 2402.09353): W' = magnitude * V / |V| with V = W + scale * up @ down, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from lora_studio.adapters.kind import AdapterKind, Draws, Factors
from lora_studio.adapters.lora import LORA


class Dora(AdapterKind):
    """`down` and `up` as LoRA's, `magnitude` [out], which begins as the norms of the weight's rows."""

    degree: ClassVar[int] = 2
    reads_weight: ClassVar[bool] = True
    has_ranks: ClassVar[bool] = True
    faster: ClassVar[frozenset[str]] = frozenset({"up"})

    def start(
        self, shape: torch.Size, rank: int, draws: Draws, *, weight: Tensor | None
    ) -> dict[str, Tensor]:
        """LoRA's, and the norms of the rows as `change` computes them, so that it does nothing."""
        norms = torch.zeros(shape[0]) if weight is None else weight.flatten(1).norm(dim=1)
        return LORA.start(shape, rank, draws, weight=weight) | {"magnitude": norms}

    def change(
        self,
        tensors: Mapping[str, Tensor],
        scale: float,
        *,
        weight: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """Of V's norms no gradient is taken, as section 4.3 advises; a row of zeros stays as it is."""
        assert weight is not None
        update = LORA.change(tensors, scale, kept=kept)
        norms = (weight + update).detach().norm(dim=1)
        factor = torch.where(norms > 0, tensors["magnitude"] / norms.clamp(min=1e-30), 1.0)[:, None]
        return (factor - 1) * weight + factor * update

    def factors(self, tensors: Mapping[str, Tensor], scale: float) -> Factors | None:
        """None: rows that all have another length are of full rank."""
        return None


DORA = Dora()

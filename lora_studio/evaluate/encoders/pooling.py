"""From what an image encoder's layers hold to one row for comparing images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def features_of(embedding: Tensor, layers: Sequence[Tensor]) -> Tensor:
    """[N, D] of length 1, from the network's embedding [N, E] and its patches after each layer [N, P, C].

    What an image shows is in the embedding. How it is drawn is in the statistics of early layers: means and
    standard deviations over the patches, as in adaptive instance normalisation (Huang and Belongie 2017),
    whatever lies where. Both have the same weight: a cosine is the mean of the two cosines.
    """
    shown, drawn = F.normalize(embedding.float(), dim=-1), drawing_of(layers)
    return torch.cat([shown, drawn], dim=-1) / 2**0.5


def drawing_of(layers: Sequence[Tensor]) -> Tensor:
    """[N, 2 * C * L] of length 1: of each of the first half of the layers its means and deviations."""
    early = layers[: max(1, (len(layers) + 1) // 2)]
    found = [torch.cat([one.float().mean(dim=1), one.float().std(dim=1)], dim=-1) for one in early]
    return F.normalize(torch.cat([F.normalize(one, dim=-1) for one in found], dim=-1), dim=-1)

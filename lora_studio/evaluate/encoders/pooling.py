"""From what an image encoder's layers hold to one row for comparing images: what it shows, and how.

Which layers and which statistics is measured, not chosen: `benchmarks/agreement.py` has how well runs are
ranked by them as an independent judge ranks them. The embedding alone sees a subject, and a style badly; the
deviations over patches see a style, and a subject less well; their means see the colours of a scene.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LOOKED_AT = 4  # layers, from the first to the last in equal steps
_LEAST = 1e-4  # as added to a deviation, of which the logarithm is taken


def features_of(embedding: Tensor, layers: Sequence[Tensor]) -> Tensor:
    """[N, D] of length 1, from the network's embedding [N, E] and its patches after each layer [N, P, C].

    What an image shows is in the embedding. How it is drawn is in how much its patches differ, whatever lies
    where (`drawing_of`). Both have the same weight: the cosine of two rows is the mean of the two cosines.
    """
    shown, drawn = F.normalize(embedding.float(), dim=-1), drawing_of(layers)
    return torch.cat([shown, drawn], dim=-1) / 2**0.5


def drawing_of(layers: Sequence[Tensor]) -> Tensor:
    """[N, C * LOOKED_AT] of length 1: the logarithms of each channel's standard deviation over the patches.

    These are half of what adaptive instance normalisation takes for an image's style (Huang and Belongie
    2017, arXiv 1703.06868); the other half, the means, is left out. Of each layer the logarithms are relative
    to their mean over channels, so that contrast alone is no style, and every layer has the same weight.
    """
    steps = min(LOOKED_AT, len(layers))
    chosen = [layers[round(place)] for place in torch.linspace(0, len(layers) - 1, steps).tolist()]
    logs = [(one.float().std(dim=1) + _LEAST).log() for one in chosen]
    each = [F.normalize(one - one.mean(dim=-1, keepdim=True), dim=-1) for one in logs]
    return torch.cat(each, dim=-1) / len(each) ** 0.5

"""PiSSA (arXiv 2404.02948): LoRA that begins as the weight's largest singular directions.

The base's bytes stay as they are: what the factors began with is taken off their product again.
"""

from __future__ import annotations

import torch
from torch import Tensor

MORE = 8  # directions than asked for, which makes the others exact
ROUNDS = 8  # of the power iteration


def principal(weight: Tensor, rank: int, scale: float, draw: torch.Generator) -> dict[str, Tensor]:
    """`down` and `up`, whose scaled product is what `weight` is made of mostly, and the same as constants.

    By a randomised range finder (arXiv 0909.4061, algorithm 4.4), keyed: a whole SVD of every weight of a
    large base would take an hour.
    """
    flat = weight.flatten(1)
    width = min(rank + MORE, *flat.shape)
    basis = torch.linalg.qr(flat @ torch.randn(flat.shape[1], width, generator=draw)).Q
    for _ in range(ROUNDS):
        basis = torch.linalg.qr(flat @ torch.linalg.qr(flat.t() @ basis).Q).Q
    left, sizes, right = torch.linalg.svd(basis.t() @ flat, full_matrices=False)
    taken = min(rank, width)
    root = (sizes[:taken] / scale).sqrt()
    down, up = torch.zeros(rank, flat.shape[1]), torch.zeros(flat.shape[0], rank)
    down[:taken], up[:, :taken] = root[:, None] * right[:taken], (basis @ left[:, :taken]) * root
    down, up = down.view(rank, *weight.shape[1:]), up.view(*up.shape, *(1 for _ in weight.shape[2:]))
    return {"down": down, "up": up, "down0": down.clone(), "up0": up.clone()}

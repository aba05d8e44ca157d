"""The leading directions of a dense matrix, without the rest of its singular value decomposition."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_studio.adapters.kind import Factors
from lora_studio.compose.factors import Cut, Decomposition
from lora_studio.rng import generator

FIRST_GUESS = 64  # ranks that a share of the energy may need
_OVERSAMPLED, _PASSES = 16, 3


def leading(change: Tensor, cut: Cut, name: str) -> tuple[Factors, float]:
    """The leading directions of a dense change [out, in], and the square of what they leave out, measured.

    By a random start and subspace iterations (Halko, Martinsson and Tropp 2011, arXiv 0909.4061, alg. 4.4):
    as good as the whole SVD to rounding where the spectrum falls, in a fraction of its time. For a share of
    the energy the guess is doubled until it has it.
    """
    total = change.double().square().sum().item()
    wanted = cut.rank or FIRST_GUESS
    while True:
        found = _subspace(change, min(wanted, *change.shape), name)
        energies = found.sizes.square().cumsum(0)
        if cut.energy is None:
            break
        enough = (energies >= cut.energy * total * (1 - 1e-7)).nonzero()  # 1: all but float32's rounding
        if len(enough) or wanted >= min(change.shape):
            cut = Cut(rank=int(enough[0]) + 1 if len(enough) else len(energies))
            break
        wanted *= 2
    factors, _ = found.cut(cut)
    return factors, max(0.0, total - energies[len(factors.down) - 1].item())


def _subspace(change: Tensor, rank: int, name: str) -> Decomposition:
    width = min(rank + _OVERSAMPLED, *change.shape)
    if 2 * width >= min(change.shape):
        left, sizes, right = torch.linalg.svd(change.double(), full_matrices=False)
        return Decomposition(left, sizes, right)
    draw = torch.randn(change.shape[1], width, generator=generator("extract", name))
    basis, _ = torch.linalg.qr(change @ draw)
    for _ in range(_PASSES):
        across, _ = torch.linalg.qr(change.T @ basis)
        basis, _ = torch.linalg.qr(change @ across)
    inside = (basis.T @ change).double()
    left, sizes, right = torch.linalg.svd(inside, full_matrices=False)
    return Decomposition(basis.double() @ left, sizes, right)

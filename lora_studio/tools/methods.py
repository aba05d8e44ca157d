"""Ways to make one change of weight of several: each takes a layer's changes, strengths in them, by file.

No method touches `up` and `down` apart: the factors of a change are not unique, only their product is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_studio.adapters.layer import Factors
from lora_studio.lora_file.factors import NOTHING, RankLimit, decompose, stacked
from lora_studio.rng import generator

TIES_DENSITY, DARE_DENSITY = 0.2, 0.5
"""The TIES paper's; DARE's noise has (1 - d) / d times the energy of what it is put on, 1 at a half."""


@dataclass(frozen=True)
class MergeOptions:
    """What is asked of a method."""

    cut: RankLimit | None = None  # of every layer, afterwards
    density: float | None = None  # ties, dare: the share of entries that is kept; None: the method's own
    seed: int = 0  # dare


def concat(parts: Mapping[int, Factors], options: MergeOptions, layer: str) -> Factors:
    """The sum, exactly: ranks add up."""
    return stacked(list(parts.values()))


def ties(parts: Mapping[int, Factors], options: MergeOptions, layer: str) -> Factors:
    """Trim, elect a sign, mean of those that have it (Yadav et al. 2023, arXiv 2306.01708).

    What is trimmed are entries of `basis.T @ change`, [k, in], with an orthonormal basis [out, k] of what all
    files write: the left singular vectors of their changes side by side, as in KnOTS (Stoica et al. 2024,
    arXiv 2410.19735). It does not depend on how a change was split into factors or on the order of files, and
    the result has rank k at most, so nothing is lost by cutting it down again; entries of the dense changes
    would leave a matrix of full rank, of which an SVD keeps a part. Trimmed layer by layer, so that layers
    with small changes are not emptied.
    """
    basis, entries = joint_basis(parts)
    density = TIES_DENSITY if options.density is None else options.density
    trimmed = torch.stack([_trim(one, density) for one in entries.values()])
    sign = trimmed.sum(0).sign()
    agrees = (trimmed.sign() == sign) & (trimmed != 0)
    return Factors((trimmed * agrees).sum(0) / agrees.sum(0).clamp(min=1), basis)


def dare(parts: Mapping[int, Factors], options: MergeOptions, layer: str) -> Factors:
    """Drop entries at random and rescale the others (Yu et al. 2023, arXiv 2311.03099), then add up.

    Entries in the basis that `ties` has. Its mean over all seeds is the sum; draws are keyed by seed, layer
    and the file's number.
    """
    basis, entries = joint_basis(parts)
    density = DARE_DENSITY if options.density is None else options.density
    total = torch.zeros_like(next(iter(entries.values())))
    for number, one in entries.items():
        kept = torch.rand(one.shape, generator=generator("dare", options.seed, layer, number)) < density
        total += one * kept / density
    return Factors(total, basis)


def project(parts: Mapping[int, Factors], options: MergeOptions, layer: str) -> Factors:
    """The first file as it is; of the others what neither reads what it reads nor writes where it writes.

    (I - Q Q.T) change (I - P P.T) with orthonormal bases Q, P of the first one's column and row space. Ranks
    add up.
    """
    if 0 not in parts:
        return stacked(list(parts.values()))
    first = decompose(parts[0]).leading()
    kept = [parts[0]]
    for down, up in (one for number, one in parts.items() if number):
        free = down - (down @ first.right.T) @ first.right
        kept.append(Factors(free, up - first.left @ (first.left.T @ up)))
    return stacked(kept)


def joint_basis(parts: Mapping[int, Factors]) -> tuple[Tensor, dict[int, Tensor]]:
    """An orthonormal basis [out, k] of what all changes write, and each change in it, [k, in].

    Its directions are the left singular vectors of the changes side by side.
    """
    columns, above = torch.linalg.qr(torch.cat([one.up for one in parts.values()], dim=1))
    shares = above.split([one.up.shape[1] for one in parts.values()], dim=1)
    inside = {n: share @ one.down for share, (n, one) in zip(shares, parts.items(), strict=True)}
    gram = torch.stack([one @ one.T for one in inside.values()]).sum(0)
    sizes, turn = torch.linalg.eigh(gram)
    real = sizes > NOTHING**2 * sizes[-1]
    turn = turn[:, real] if real.any() else turn[:, -1:]
    return columns @ turn, {number: turn.T @ one for number, one in inside.items()}


def _trim(entries: Tensor, density: float) -> Tensor:
    """With all but the largest entries as 0."""
    kept = max(1, round(density * entries.numel()))
    least = entries.abs().flatten().kthvalue(entries.numel() - kept + 1).values
    return entries * (entries.abs() >= least)

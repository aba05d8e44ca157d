"""A change of weight `up @ down` measured, taken apart and cut without ever being multiplied out.

float64 throughout: the factors are narrow, and the tail of a spectrum is a difference of large numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from lora_studio.adapters.layer import Factors, range_basis, shape_of
from lora_studio.errors import StudioError
from lora_studio.lora_file.write import DTYPES
from lora_studio.rng import generator

if TYPE_CHECKING:
    from lora_studio.adapters.adapter_set import AdapterSet
    from lora_studio.adapters.layer import Layer

NOTHING = 1e-9  # of the largest singular value: below it there is only rounding


@dataclass(frozen=True)
class RankLimit:
    """How much of a layer is kept: so many ranks, or as few as have a share of the energy."""

    rank: int | None = None
    energy: float | None = None  # above 0, up to 1: a share of the sum of squares

    def ranks_of(self, sizes: Tensor) -> int:
        """How many of the singular values [k], from the largest, are kept; at least 1."""
        if self.energy is None:
            return max(1, min(self.rank or len(sizes), len(sizes)))
        energy = sizes.double().square()
        tail = energy.flip(0).cumsum(0).flip(0)  # of the ranks from each one on: exact also where it is tiny
        wanted = (1 - self.energy) * tail[0]
        return max(1, int((tail > wanted).sum()))


@dataclass(frozen=True)
class Decomposition:
    """The singular value decomposition of a change of weight, from its factors."""

    left: Tensor  # [out, r], orthonormal columns
    sizes: Tensor  # [k], falling, k >= r
    right: Tensor  # [r, in], orthonormal rows

    @property
    def energy(self) -> float:
        return self.sizes.double().square().sum().item()

    def cut(self, cut: RankLimit) -> tuple[Factors, float]:
        """The nearest change of so many ranks (Eckart and Young), and the square of its distance.

        The nearest one's own energy is that of the whole less this square.
        """
        rank = cut.ranks_of(self.sizes)
        root = self.sizes[:rank].sqrt()
        factors = Factors(root[:, None] * self.right[:rank], self.left[:, :rank] * root)
        return factors, self.sizes[rank:].double().square().sum().item()

    def leading(self, energy: float = 1.0) -> Decomposition:
        """Its directions that have this share of the energy, without those that are rounding; maybe none."""
        if not self.sizes[0] > 0:
            return Decomposition(self.left[:, :0], self.sizes[:0], self.right[:0])
        real = int((self.sizes > NOTHING * self.sizes[0]).sum())
        rank = min(real, RankLimit(energy=energy).ranks_of(self.sizes))
        return Decomposition(self.left[:, :rank], self.sizes[:rank], self.right[:rank])


def decompose(factors: Factors, cut: RankLimit | None = None) -> Decomposition:
    """QR of both factors, then the SVD of what is between the two bases: [r, r] instead of [out, in].

    With the vectors of the ranks that `cut` keeps alone, but all sizes. The bases are never written out:
    their reflections are applied to those vectors. Raises StudioError for a product beyond their dtype.
    """
    columns, rows = torch.geqrf(factors.up), torch.geqrf(factors.down.T)
    above, beside = (one.a[: one.tau.shape[0]].triu() for one in (columns, rows))
    between = above @ beside.T
    if not between.isfinite().all():
        dtype = str(between.dtype).removeprefix("torch.")
        raise StudioError(f"a change of the file has numbers beyond {dtype}; the file is damaged.")
    left, sizes, right = torch.linalg.svd(between, full_matrices=False)
    rank = len(sizes) if cut is None else cut.ranks_of(sizes)
    return Decomposition(
        _in_basis(*columns, left[:, :rank]), sizes, _in_basis(*rows, right[:rank].T).T.contiguous()
    )


def _in_basis(reflections: Tensor, scales: Tensor, coordinates: Tensor) -> Tensor:
    """Q [m, k] @ coordinates [k, r], with Q as LAPACK's geqrf leaves it."""
    longer = coordinates.new_zeros(len(reflections), coordinates.shape[1])
    longer[: len(coordinates)] = coordinates
    return torch.ormqr(reflections[:, : len(scales)], scales, longer)


def stacked(parts: Sequence[Factors]) -> Factors:
    """The sum of changes, exactly: their ranks side by side."""
    return Factors(torch.cat([one.down for one in parts]), torch.cat([one.up for one in parts], dim=1))


def inner(one: Factors, other: Factors) -> float:
    """The sum of the products of all entries of two changes of the same shape."""
    return ((one.up.T @ other.up) * (one.down @ other.down.T)).sum().item()


def energy(factors: Factors) -> float:
    """The sum of squares of a change's entries; never below 0, which rounding could make it."""
    return max(0.0, inner(factors, factors))


def difference(one: Factors, other: Factors) -> Factors:
    return stacked([one, Factors(other.down, -other.up)])


SMALL, LARGE = 2.0**-8, 2.0**12


def balanced(factors: Factors, *, alike: bool = False) -> Factors:
    """The same change with both factors of about one size in every rank, so that neither leaves float16.

    By powers of two, which change no digit; `alike`: by the same one in all ranks.
    """
    down, up = factors
    if alike:
        across, along = down.abs().max().double(), up.abs().max().double()
    else:
        across, along = down.norm(dim=1), up.norm(dim=0)
    power = torch.where((across > 0) & (along > 0), (along / across).log2().div(2).round().exp2(), 1.0)
    power = power.to(down.dtype)
    return Factors(down * (power if alike else power[:, None]), up / power)


def in_range(down: Tensor, up: Tensor, *, alike: bool = False) -> Factors:
    """Of one size, where one of them is small or large; `alike`: they are no factors with ranks.

    float16 has few bits left for numbers below 6e-5, as of an `up` that hardly began to learn, and none for
    those above 65504.
    """
    sizes = [one.abs().max().item() for one in (down, up)]
    is_odd = min(sizes) > 0 and (min(sizes) < SMALL or max(sizes) > LARGE)
    if not is_odd or alike or max(sizes) <= LARGE:
        return balanced(Factors(down, up), alike=True) if is_odd else Factors(down, up)
    flat = balanced(Factors(down.flatten(1), up.flatten(1)))
    return Factors(flat.down.view_as(down), flat.up.view_as(up))


FIRST_GUESS = 64  # ranks that a share of the energy may need
_OVERSAMPLED, _PASSES = 16, 3


def leading(change: Tensor, cut: RankLimit, name: str) -> tuple[Factors, float]:
    """The leading directions of a dense change [out, in], and the square of what they leave out, measured.

    As good as the whole SVD to rounding where the spectrum falls, in a fraction of its time. For a share of
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
            cut = RankLimit(rank=int(enough[0]) + 1 if len(enough) else len(energies))
            break
        wanted *= 2
    factors, _ = found.cut(cut)
    return factors, max(0.0, total - energies[len(factors.down) - 1].item())


def _subspace(change: Tensor, rank: int, name: str) -> Decomposition:
    width = min(rank + _OVERSAMPLED, *change.shape)
    if 2 * width >= min(change.shape):
        left, sizes, right = torch.linalg.svd(change.double(), full_matrices=False)
        return Decomposition(left, sizes, right)
    basis = range_basis(change, width, generator("extract", name), passes=_PASSES)
    left, sizes, right = torch.linalg.svd((basis.T @ change).double(), full_matrices=False)
    return Decomposition(basis.double() @ left, sizes, right)


CUT = 5e-4  # of the change's norm: as much as float16, which files have, rounds away of each factor


class PlainLora(NamedTuple):
    """A layer's change of weight, scale * up @ down."""

    down: Tensor  # [r, in] or [r, in, k, k]
    up: Tensor  # [out, r] or [out, r, 1, 1]
    scale: float
    left_out: float = 0.0  # share of the change's norm that it lacks


def as_plain(layer: Layer) -> PlainLora:
    """A trained layer's, exact where that takes no more ranks than its weight has itself."""
    if layer.tensors.keys() == {"down", "up"} and not layer.constants:
        return PlainLora(layer.tensors["down"], layer.tensors["up"], layer.scale)
    exact, shape = layer.factors(), shape_of(layer.module.get_base_layer())
    return cut_plain(layer.delta(), shape) if exact is None else _shaped(balanced(exact), shape)


def cut_plain(change: Tensor, shape: Sequence[int]) -> PlainLora:
    """Of a change of a weight of this shape, by an SVD, in as few ranks as leave out at most `CUT` of it.

    Both factors are of one size in every rank, so that neither leaves float16's range.
    """
    found = Decomposition(*torch.linalg.svd(change.flatten(1), full_matrices=False))
    factors, lost = found.cut(RankLimit(energy=1 - CUT**2))
    return _shaped(factors, shape, math.sqrt(lost / found.energy) if lost else 0.0)


def _shaped(factors: Factors, shape: Sequence[int], left_out: float = 0.0) -> PlainLora:
    down, up = factors
    return PlainLora(down.view(-1, *shape[1:]), up.view(*up.shape, *(1 for _ in shape[2:])), 1.0, left_out)


def most_bytes(adapters: AdapterSet, dtype: str, rows_with: Callable[[str], int] = lambda path: 0) -> int:
    """That the tensors of their files can take at most, as plain LoRA.

    `rows_with`: how many rows the weight has that a layer is fused into in its file; its up has as many.
    """
    numbers = 0
    for layer in adapters.layers:
        out, *along = shape_of(layer.module.get_base_layer())
        inputs = math.prod(along)
        exact = layer.factors()
        rank = min(out, inputs) if exact is None else len(exact.down)
        numbers += (max(out, rows_with(layer.path)) + inputs) * rank
    return (numbers + sum(token.rows.numel() for token in adapters.tokens)) * DTYPES[dtype].itemsize

"""`lora-studio combine` and `resize`: several LoRA files as one, and one with fewer ranks, by exact SVDs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from lora_studio.adapters.layer import Factors
from lora_studio.errors import StudioError
from lora_studio.lora_file.factors import RankLimit, decompose, difference, energy, stacked
from lora_studio.lora_file.lora_file import LoraFile
from lora_studio.lora_file.open import check_same_family
from lora_studio.tools import METHODS, Report
from lora_studio.tools.methods import MergeOptions
from lora_studio.tools.result import Result, metadata_of

NEEDS_CUT, NO_CUT = "svd", "concat"
WITH_DENSITY = ("ties", "dare")
_AS_USUAL = MergeOptions()
_LEAST_STRENGTH, _MOST_STRENGTH = 1e-6, 100.0
_ROUNDING = 1e-14  # of sums of squares in float64: a result with no more is nothing but rounding


@dataclass(frozen=True)
class BlockWeight:
    """A further factor for the layers whose names fit a pattern, of one file (from 1) or of all."""

    pattern: str
    weight: float
    file: int | None = None


@dataclass(frozen=True)
class Term:
    """A file, and how strongly it counts. Raises StudioError for a strength that leaves nothing sensible."""

    file: LoraFile
    strength: float

    def __post_init__(self) -> None:
        if not _LEAST_STRENGTH <= abs(self.strength) <= _MOST_STRENGTH:
            raise StudioError(
                f"{self.file.path.name}: the strength is {self.strength:g}; it must be from "
                f"{_LEAST_STRENGTH:g} to {_MOST_STRENGTH:g}, or as far below 0; at 0 leave the file out."
            )


@dataclass(frozen=True)
class CombineReport(Report):
    file: str
    method: str
    layers: int
    ranks: tuple[int, int]  # least, most
    shares: dict[str, float]  # file -> the norm of its change, with its strength
    norm: float  # of the result's change
    left_out: float  # distance from the exact sum, relative to its norm
    cast_error: float  # relative to the norm
    bytes: int
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def combine(
    terms: Sequence[Term],
    out: Path,
    *,
    method: str,
    options: MergeOptions = _AS_USUAL,
    blocks: Sequence[BlockWeight] = (),
    dtype: str = "float16",
) -> CombineReport:
    """Write the files' changes together as one plain LoRA file.

    Raises StudioError for files that do not go together, and for options that do not go with the method.
    """
    check_options(method, options)
    files = [term.file for term in terms]
    notes = check_same_family(files)
    _check_blocks(blocks, files)
    totals = _Totals(terms, blocks, method, options)
    result = Result(dtype, _alpha(files, method, options), files[0].transformer)
    for name in dict.fromkeys(name for file in files for name in file.layers):
        shape = next(file.layers[name].shape for file in files if name in file.layers)
        factors, squares = totals.merged(name)
        result.add(name, factors, shape, squares=squares)
    if result.energy <= _ROUNDING * sum(totals.energies):
        raise StudioError("every layer of the result would be zero, so nothing was written.")
    said = ", ".join(f"{term.strength:g}" for term in terms)
    size = result.write(out, metadata_of(files, result, out, how=f"combined by {method}, strengths {said}"))
    made = (out.name, method, len(result.ranks), result.span, totals.shares(), math.sqrt(result.energy))
    return CombineReport(*made, totals.left_out, result.rounding.share, size, notes, result.rounding.warnings)


def check_options(method: str, options: MergeOptions) -> None:
    """Raise StudioError if the options do not go with the method."""
    METHODS.check(method)
    if method == NEEDS_CUT and options.cut is None:
        raise StudioError("--method svd needs --rank or --energy, e.g. --rank 32 or --energy 0.99.")
    if method == NO_CUT and options.cut is not None:
        raise StudioError("--method concat is exact, its ranks add up; for --rank or --energy take svd.")
    if options.density is not None and method not in WITH_DENSITY:
        raise StudioError(f"--density is for {' and '.join(WITH_DENSITY)}; leave it out with {method}.")
    if options.density is not None and not 0 < options.density <= 1:
        raise StudioError(f"--density is {options.density:g}; it must be above 0 and at most 1.")


def _check_blocks(blocks: Sequence[BlockWeight], files: Sequence[LoraFile]) -> None:
    for one in blocks:
        if one.file is not None and not 1 <= one.file <= len(files):
            raise StudioError(f"--blocks names file {one.file}; there are {len(files)}, counted from 1.")
        chosen = files if one.file is None else [files[one.file - 1]]
        if not any(fnmatchcase(name, one.pattern) for file in chosen for name in file.layers):
            like = f"their names are like {next(iter(chosen[0].layers))}, and * stands for anything"
            raise StudioError(f"--blocks {one.pattern!r} fits no layer; {like}.")


def _alpha(files: Sequence[LoraFile], method: str, options: MergeOptions) -> float:
    """About the largest rank that the result can have, so that UIs show a familiar pair."""
    ranks = [max(file.ranks.values()) for file in files]
    return float(sum(ranks) if options.cut is None else min(options.cut.rank or max(ranks), sum(ranks)))


class _Totals:
    """Layers put together one by one, and what of it adds up over all of them."""

    def __init__(
        self, terms: Sequence[Term], blocks: Sequence[BlockWeight], method: str, options: MergeOptions
    ) -> None:
        self.terms, self.blocks, self.method, self.options = terms, blocks, method, options
        self._exact = self._distance = 0.0  # sums of squares
        self.energies = [0.0] * len(terms)

    @property
    def left_out(self) -> float:
        """Distance from the exact sum, relative to its norm."""
        return math.sqrt(self._distance / self._exact) if self._exact else 0.0

    def shares(self) -> dict[str, float]:
        """File -> the norm of its change; numbered where two have one name."""
        names = [term.file.name for term in self.terms]
        titles = [f"{name} ({n + 1})" if names.count(name) > 1 else name for n, name in enumerate(names)]
        return {title: math.sqrt(one) for title, one in zip(titles, self.energies, strict=True)}

    def merged(self, name: str) -> tuple[Factors, float | None]:
        """A layer's change as the method makes it, cut as asked, and its energy where that is known."""
        parts = {
            number: term.file.factors(name, term.strength * self._weight(number, name))
            for number, term in enumerate(self.terms)
            if name in term.file.layers
        }
        for number, one in parts.items():
            self.energies[number] += energy(one)
        exact = stacked(list(parts.values()))
        if self.method == NEEDS_CUT and self.options.cut is not None:
            whole = decompose(exact, self.options.cut)
            factors, tail = whole.cut(self.options.cut)
            self._exact, self._distance = self._exact + whole.energy, self._distance + tail
            return factors, whole.energy - tail
        self._exact += energy(exact)
        factors = METHODS[self.method](parts, self.options, name)
        if self.options.cut is not None:
            factors, _ = decompose(factors, self.options.cut).cut(self.options.cut)
        if self.method != NO_CUT:
            self._distance += energy(difference(factors, exact))
        return factors, None

    def _weight(self, number: int, name: str) -> float:
        fits = (one for one in self.blocks if one.file in (None, number + 1))
        return ([1.0] + [one.weight for one in fits if fnmatchcase(name, one.pattern)])[-1]


@dataclass(frozen=True)
class ResizeReport(Report):
    file: str
    layers: int
    ranks_before: tuple[int, int]  # least, most
    ranks: tuple[int, int]
    left_out: float  # norm of what was cut, relative to the norm of the change
    worst: float  # the same of the layer that lost most
    cast_error: float
    bytes_before: int
    bytes: int
    rank_of: dict[str, int] = field(default_factory=dict)  # by layer
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def resize(file: LoraFile, out: Path, cut: RankLimit, *, dtype: str = "float16") -> ResizeReport:
    """Write a file with each layer cut: the nearest one of that rank, nothing clamped.

    A layer that has fewer ranks keeps those. Raises StudioError for numbers that are not finite.
    """
    before = list(file.ranks.values())
    result = Result(dtype, float(min(cut.rank or max(before), max(before))), file.transformer)
    lost = total = worst = 0.0
    for name in file.layers:
        found = decompose(file.factors(name), cut)
        (factors, tail), size = found.cut(cut), found.energy
        lost, total, worst = lost + tail, total + size, max(worst, tail / size if size else 0.0)
        result.add(name, factors, file.layers[name].shape, squares=size - tail)
    how = f"resized to rank {cut.rank}" if cut.rank else f"resized to {cut.energy:g} of the energy"
    size_after = result.write(out, metadata_of([file], result, out, how=how))
    made = (out.name, len(result.ranks), (min(before), max(before)), result.span)
    shares = (math.sqrt(lost / total) if total else 0.0, math.sqrt(worst), result.rounding.share)
    size_before = file.path.stat().st_size
    said = (list(file.notes), result.rounding.warnings)
    return ResizeReport(*made, *shares, size_before, size_after, result.ranks, *said)

"""`lora-studio resize`: the same change with fewer ranks, by an exact SVD of the factors."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lora_studio.lora_file.factors import RankLimit, decompose
from lora_studio.lora_file.lora_file import LoraFile
from lora_studio.tools.result import Result, metadata_of


@dataclass
class ResizeReport:
    """What was made."""

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

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


def resize(file: LoraFile, out: Path, cut: RankLimit, *, dtype: str = "float16") -> ResizeReport:
    """Write a file with each layer cut: the nearest one of that rank, nothing clamped.

    A layer that has fewer ranks keeps those. Raises StudioError for numbers that are not finite.
    """
    before = list(file.ranks.values())
    result = Result(dtype, alpha=float(min(cut.rank or max(before), max(before))))
    lost = total = worst = 0.0
    for name in file.layers:
        found = decompose(file.factors(name), cut)
        factors, tail = found.cut(cut)
        size = found.energy
        lost, total, worst = lost + tail, total + size, max(worst, tail / size if size else 0.0)
        result.add(name, factors, file.layers[name].shape, squares=size - tail)
    how = f"resized to rank {cut.rank}" if cut.rank else f"resized to {cut.energy:g} of the energy"
    size_after = result.write(out, metadata_of([file], result, out, how=how))
    ranks = list(result.ranks.values())
    return ResizeReport(
        out.name,
        len(ranks),
        (min(before), max(before)),
        (min(ranks), max(ranks)),
        math.sqrt(lost / total) if total else 0.0,
        math.sqrt(worst),
        result.cast_error,
        file.path.stat().st_size,
        size_after,
        result.ranks,
        list(file.notes),
    )

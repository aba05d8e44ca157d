"""`lora-studio extract`: the difference of two whole bases as a LoRA file, tensor by tensor."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from lora_studio.adapters.layer import Factors
from lora_studio.errors import StudioError
from lora_studio.lora_file.base_weights import Weights
from lora_studio.lora_file.factors import FIRST_GUESS, RankLimit, leading
from lora_studio.lora_file.forms import LayerSizes
from lora_studio.quantization import layer_paths
from lora_studio.text import plural
from lora_studio.tools import Report
from lora_studio.tools.result import Result, metadata_of_base


@dataclass(frozen=True)
class ExtractReport(Report):
    file: str
    layers: int  # in the file
    unchanged: int  # layers that are the same in both
    ranks: tuple[int, int]  # least, most
    norm: float  # of the difference of all layers that are in the file
    left_out: float  # norm of what was cut, relative to that
    cast_error: float
    bytes: int
    not_in_file: dict[str, int]  # what else differs -> how many tensors
    not_in_file_norm: float  # of all that, relative to `norm`
    rank_of: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def extract(
    tuned: Weights,
    base: Weights,
    out: Path,
    cut: RankLimit,
    *,
    dtype: str = "float16",
    on_tensor: Callable[[int, int], None] = lambda done, total: None,
) -> ExtractReport:
    """Write what `tuned` has learned in the layers that a LoRA is put into, convolutions too.

    Raises StudioError for bases of different kinds or sizes, or without any difference.
    """
    _check_alike(tuned, base)
    names = _layers(base)
    layout = base.family.file_layout
    size_of = None if layout is None else LayerSizes(layout, {}, base.family)
    result = Result(dtype, float(cut.rank or FIRST_GUESS), layout, size_of)
    kept = lost = elsewhere = 0.0  # sums of squares
    unchanged, others = 0, Counter[str]()
    for number, key in enumerate(base.places):
        change = _difference(tuned.read(key), base.read(key))
        name = names.get(key)
        if not change.any():
            unchanged += name is not None
        elif name is None:
            others[_kind(base, key)] += 1
            elsewhere += change.double().square().sum().item()
        else:
            factors, tail = leading(change.flatten(1), cut, name)
            lost, kept = lost + tail, kept + change.double().square().sum().item()
            result.add(name, factors, change.shape)
        on_tensor(number + 1, len(base.places))
    if not result.ranks:
        same = f"{tuned.name} and {base.name} have the same weights"
        raise StudioError(f"{same} in every layer that a LoRA changes, so there is nothing to extract.")
    _add_companions(result, base)
    how = f"extracted at rank {cut.rank}" if cut.rank else f"extracted with {cut.energy:g} of the energy"
    size = result.write(out, metadata_of_base(base.family.traits, result, out, how=how))
    norm = math.sqrt(kept)
    made = (out.name, len(result.ranks), unchanged, result.span, norm, math.sqrt(lost) / norm)
    rest = (dict(others), math.sqrt(elsewhere) / norm)
    said = (list[str](), result.rounding.warnings)
    return ExtractReport(*made, result.rounding.share, size, *rest, result.ranks, *said)


def _difference(tuned: Tensor, base: Tensor) -> Tensor:
    """In float32; of two dtypes the coarser one counts, whose rounding is no learning."""
    if tuned.dtype != base.dtype:
        coarser = min(tuned.dtype, base.dtype, key=lambda one: (one.itemsize, -torch.finfo(one).eps))
        tuned, base = tuned.to(coarser), base.to(coarser)
    return tuned.float() - base.float()


def _check_alike(tuned: Weights, base: Weights) -> None:
    if type(tuned.family) is not type(base.family):
        kinds = [one.family.traits.base_model_version for one in (tuned, base)]
        what = f"{tuned.name} is of the kind {kinds[0]}, {base.name} of {kinds[1]}"
        raise StudioError(f"{what}; give the base that it was trained from.")
    shapes, expected = ({key: one.shape for key, one in side.places.items()} for side in (tuned, base))
    if unlike := sorted({key for key, _ in shapes.items() ^ expected.items()}):
        what = f"differ in the size or number of {plural(len(unlike), 'tensor')}, first {unlike[0]}"
        raise StudioError(f"{tuned.name} and {base.name} {what}; give the base that it was trained from.")


def _layers(base: Weights) -> dict[str, str]:
    """Key of a weight -> what UIs call its layer, for the layers that adapters go into."""
    family, found = base.family, {}
    for part, endings in family.targets.items():
        wanted = (*endings, *family.convolutions.get(part, ()))
        module = family.parts[part]
        for path in layer_paths(module, wanted, lambda layer: isinstance(layer, nn.Linear | nn.Conv2d)):
            canonical = family.canonical_path(part, path)
            found[f"{part}.{canonical}.weight"] = family.ui_name(part, canonical)
    return found


def _kind(base: Weights, key: str) -> str:
    """What a tensor is that no LoRA file holds: its part and what of it, in a few words."""
    part = key.partition(".")[0]
    if part not in base.family.targets:
        return part
    path = key.rpartition(".")[0].removeprefix(f"{part}.")
    if key.endswith(".bias"):
        return f"{part}: biases"
    return f"{part}: norms" if "norm" in path.rpartition(".")[2] else f"{part}: other layers"


def _add_companions(result: Result, base: Weights) -> None:
    """Layers that UIs look for beside those that are there, as zero."""
    keys = {name: key.removesuffix(".weight").partition(".") for key, name in _layers(base).items()}
    for part, path in base.family.companions([keys[name][::2] for name in result.ranks]):
        shape = base.places[f"{part}.{path}.weight"].shape
        zero = Factors(torch.zeros(1, math.prod(shape[1:])).double(), torch.zeros(shape[0], 1).double())
        result.add(base.family.ui_name(part, path), zero, shape)

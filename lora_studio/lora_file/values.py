"""What the numbers of a LoRA file say: which layers are not finite, which are zero, and all alphas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from lora_studio.lora_file.contents import Contents, StoredLayer
from lora_studio.lora_file.header import Header

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Values:
    """What was read of a file's numbers; by layer."""

    alphas: Mapping[str, float]  # of those that have one number for it
    not_finite: list[str] = field(default_factory=list)
    zero: list[str] = field(default_factory=list)  # change nothing


def alphas_of(header: Header, contents: Contents) -> Values:
    """Nothing but the alphas, which are quick to read."""
    found = {}
    for name, layer in contents.layers.items():
        if "alpha" in layer.entries and layer.entries["alpha"].shape in ((), (1,)):
            found[name] = float(header.tensor(layer.keys["alpha"]).item())
    return Values(found)


def values_of(header: Header, contents: Contents) -> Values:
    """All numbers, a piece of a tensor at a time."""
    values = alphas_of(header, contents)
    for name, layer in contents.layers.items():
        tensors = {end: _look(header, key) for end, key in layer.keys.items()}
        if not all(finite for finite, _ in tensors.values()):
            values.not_finite.append(name)
        elif _is_zero(layer, {end for end, (_, something) in tensors.items() if not something}):
            values.zero.append(name)
    return values


def _look(header: Header, key: str) -> tuple[bool, bool]:
    """Whether all numbers of a tensor are finite, and whether any is not zero."""
    finite, something = True, False
    for chunk in header.chunks(key):
        numbers = chunk if chunk.dtype in (*DTYPES, torch.float64) else chunk.float()
        finite = finite and bool(numbers.isfinite().all())
        something = something or bool(numbers.any())
    return finite, something


def _is_zero(layer: StoredLayer, zero: set[str]) -> bool:
    """A product with a factor that is zero, or nothing but zeros."""
    tensors = set(layer.entries) - {"alpha", "dora_scale", "rescale"}
    if layer.kind in ("lora", "loha", "lokr"):
        return bool(tensors & zero)
    return tensors <= zero


MAX_RANK = 4096


def layer_faults(layer: StoredLayer, alpha: float | None) -> list[str]:
    """Of one layer, from the header."""
    if layer.missing:
        return [f"{', '.join(layer.missing)} is missing"]
    faults = [
        f"{end} has dtype {str(one.dtype).removeprefix('torch.')}"
        for end, one in layer.entries.items()
        if one.dtype not in DTYPES and end != "alpha"
    ]
    if any(0 in one.shape for one in layer.entries.values()):
        faults.append("a tensor is empty")
    if layer.rank is not None and not 1 <= layer.rank <= MAX_RANK:
        faults.append(f"its rank is {layer.rank}; 1 to {MAX_RANK} are possible")
    if "alpha" in layer.entries and alpha is None:
        faults.append(f"alpha has the shape {layer.shape('alpha')}; it must be one number")
    if layer.changes is None and layer.kind not in ("oft", "norm"):
        shapes = " and ".join(str(one.shape) for end, one in layer.entries.items() if end != "alpha")
        faults.append(f"the shapes {shapes} do not fit together")
    return faults

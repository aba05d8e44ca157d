"""What damages a layer, from the header alone."""

from __future__ import annotations

from lora_studio.export.contents import StoredLayer
from lora_studio.export.values import DTYPES

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

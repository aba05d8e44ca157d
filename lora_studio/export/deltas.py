"""The weight changes in a written file against those of the adapters that it was written from."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.adapters.layer import Layer
from lora_studio.export.verify import LoraFile, Report
from lora_studio.families.base import ModelFamily

DELTA_TOLERANCE = 2e-3  # relative, of a layer's weight change: two factors of 11 bits each


def check_deltas(file: LoraFile, family: ModelFamily, adapters: AdapterSet, report: Report) -> None:
    """Every layer's weight change recomputed from the file's bytes equals the live one."""
    compare(adapters, lambda layer: file.delta(family.ui_name(layer.part, layer.path)), report)


def compare(adapters: AdapterSet, change: Callable[[Layer], Tensor], report: Report) -> None:
    """What a file says that a layer's weight change is, against the live one.

    `change` raises KeyError for a layer that the file has not.
    """
    worst = 0.0
    for layer in adapters.layers:
        try:
            found = change(layer)
        except KeyError:
            report.faults.append(f"{layer.name} was trained but is not in the file")
            continue
        live = layer.delta().cpu()
        size = live.norm().item()
        error = (found.reshape(live.shape) - live).norm().item()
        worst = max(worst, error / size if size else error)
    report.checks["delta_error"] = worst
    if not worst <= DELTA_TOLERANCE:
        report.faults.append(f"a layer's weight change differs from the trained one by {worst:.2%}")

"""The weight changes in a written file against those of the adapters that it was written from."""

from __future__ import annotations

from lora_studio.adapters.base import AdapterSet
from lora_studio.export.verify import LoraFile, Report
from lora_studio.families.base import ModelFamily

DELTA_TOLERANCE = 2e-3  # relative, of a layer's weight change: two factors of 11 bits each


def check_deltas(file: LoraFile, family: ModelFamily, adapters: AdapterSet, report: Report) -> None:
    """Every layer's weight change recomputed from the file's bytes equals the live one."""
    worst = 0.0
    for layer in adapters.layers:
        name = family.ui_name(layer.part, layer.path)
        if name not in file.layers:
            report.faults.append(f"{name} was trained but is not in the file")
            continue
        live = layer.delta().cpu()
        size = live.norm().item()
        error = (file.delta(name) - live).norm().item()
        worst = max(worst, error / size if size else error)
    report.checks["delta_error"] = worst
    if worst > DELTA_TOLERANCE:
        report.faults.append(f"a layer's weight change differs from the trained one by {worst:.2%}")

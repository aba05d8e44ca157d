"""What files of our own have to keep, beyond being whole."""

from __future__ import annotations

from lora_studio.export.metadata import MAX_BYTES
from lora_studio.export.uis_table import Loss
from lora_studio.export.values import DTYPES
from lora_studio.export.verify import LoraFile, Report, metadata_bytes


def check_rules(file: LoraFile, report: Report) -> None:
    """Every UI loads all of it, alphas are numbers with a point, and what it says of itself is short."""
    faults = [
        f"{one.ui} does not load all of it: {reason.what}: {reason.consequence}"
        for one in report.uis
        if one.is_files_fault
        for reason in one.reasons
        if reason.loss != Loss.NONE.value
    ]
    for name, layer in file.contents.layers.items():
        alpha = layer.entries.get("alpha")
        if alpha is None or alpha.dtype not in DTYPES:
            faults.append(f"{name}: alpha is {'missing' if alpha is None else alpha.dtype}")
    if (size := metadata_bytes(file)) > MAX_BYTES:
        faults.append(f"its metadata has {size} bytes; UIs expect less than {MAX_BYTES}")
    report.faults += faults

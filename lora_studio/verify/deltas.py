"""The weight changes in a written file against those of the adapters that it was written from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.adapters.layer import Layer
from lora_studio.families.base import ModelFamily
from lora_studio.lora_file.lora_file import LoraFile
from lora_studio.verify.file import VerifyReport

ROUNDINGS = 2.0  # of the file's dtype, in a layer's weight change: it is a product of two factors
CUT_TOO = 1e-3  # float32 rounds nothing away, but plain LoRA may be cut


def check_deltas(file: LoraFile, family: ModelFamily, adapters: AdapterSet, report: VerifyReport) -> None:
    """Every layer's weight change recomputed from the file's bytes equals the live one."""
    dtypes = {getattr(torch, layer.entries["lora_up.weight"].dtype) for layer in file.layers.values()}
    roughest = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
    compare(
        adapters, lambda layer: file.delta(family.ui_name(layer.part, layer.path)), report, dtype=roughest
    )


def compare(
    adapters: AdapterSet, change: Callable[[Layer], Tensor], report: VerifyReport, *, dtype: torch.dtype
) -> None:
    """What a file of this dtype says that a layer's weight change is, against the live one.

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
    if not worst <= max(ROUNDINGS * torch.finfo(dtype).eps, CUT_TOO):
        report.faults.append(f"a layer's weight change differs from the trained one by {worst:.2%}")

"""A written file against the adapters and tokens that it was written from, and a token's file by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.adapters.layer import Layer
from lora_studio.families.base import ModelFamily
from lora_studio.lora_file.header import open_tensors
from lora_studio.lora_file.lora_file import LoraFile
from lora_studio.lora_file.write import DTYPES
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


def check_tensors(path: Path, report: VerifyReport) -> dict[str, Tensor]:
    """The file by itself: dtypes, finite, not zero, as many vectors for each encoder; its tensors."""
    (tensors, _), name = open_tensors(path), path.name
    for key, tensor in tensors.items():
        if tensor.dtype not in DTYPES.values():
            report.faults.append(f"{name}: {key} has dtype {tensor.dtype}")
        elif not tensor.isfinite().all() or not tensor.any():
            report.faults.append(f"{name}: {key} is not finite, or zero")
    if len({len(tensor) for tensor in tensors.values() if tensor.ndim}) > 1:
        report.faults.append(f"{name}: the encoders have different numbers of vectors")
    return tensors


def check_embedding(path: Path, family: ModelFamily, report: VerifyReport) -> dict[str, Tensor]:
    """The file against its base, too: the keys UIs look for, and shapes; its tensors."""
    tensors, name = check_tensors(path, report), path.name
    keys = {key: part for part, key in family.embedding_keys.items()}
    if tensors.keys() != keys.keys():
        report.faults.append(
            f"{name} holds {', '.join(sorted(tensors)) or 'nothing'}, but UIs look for {', '.join(keys)}"
        )
    for key, tensor in tensors.items():
        if key in keys:
            width = family.parts[keys[key]].get_input_embeddings().weight.shape[1]  # type: ignore[operator]
            if tensor.ndim != 2 or tensor.shape[1] != width:
                report.faults.append(f"{name}: {key} has the shape {tuple(tensor.shape)}, not [n, {width}]")
    return tensors

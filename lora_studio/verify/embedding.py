"""The file of a learned token, by itself and against its base."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from lora_studio.families.base import ModelFamily
from lora_studio.lora_file.header import open_tensors
from lora_studio.lora_file.write import DTYPES
from lora_studio.verify.file import VerifyReport


def open_embedding(path: Path) -> dict[str, Tensor]:
    """A file's tensors. Raises StudioError if it is not there or no whole safetensors file."""
    return open_tensors(path)[0]


def check_tensors(path: Path, report: VerifyReport) -> dict[str, Tensor]:
    """The file by itself: dtypes, finite, not zero, as many vectors for each encoder; its tensors."""
    tensors, name = open_embedding(path), path.name
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

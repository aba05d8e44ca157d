"""Write a finished LoRA file: cast, header, atomic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lora_studio.errors import ExportMismatch
from lora_studio.files import writing_atomically
from lora_studio.tensor_file.header import TensorEntry, header_bytes, legacy_hash, places_of
from lora_studio.text import plural

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def entry_of(tensor: Tensor, dtype: torch.dtype | None = None) -> TensorEntry:
    """What a header says of a tensor that gets this dtype; None: its own."""
    return TensorEntry(str(dtype or tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


def write_lora(
    path: Path, tensors: dict[str, Tensor], *, dtype: str, describe: Callable[[bytes], dict[str, str]]
) -> float:
    """Write float32 `tensors` in `dtype`; `describe` makes the metadata from the finished tensor block.

    Returns the largest relative error that casting caused in any tensor. Raises ExportMismatch when a value
    does not fit into the dtype, in which case nothing is written.
    """
    error = cast_error(tensors, dtype)
    cast = {key: tensor.to(DTYPES[dtype]) for key, tensor in tensors.items()}
    write_described(path, cast, lambda block: describe(b"".join(block)))
    return error


def write_described(
    path: Path, tensors: Mapping[str, Tensor], describe: Callable[[list[memoryview]], dict[str, str]]
) -> None:
    """Tensors of one dtype, in the order that safetensors itself gives them, and what is said of their bytes.

    The metadata in alphabetical order: safetensors writes them in that of a hash map, which differs from run
    to run, and equal runs shall give equal bytes.
    """
    names = sorted(tensors)
    entries = {name: entry_of(tensors[name]) for name in names}
    block = [raw(tensors[name]) for name in names]  # no copies
    metadata = describe(block)
    if "sshs_model_hash" in metadata:
        metadata["sshs_legacy_hash"] = legacy_hash(places_of(entries), block, metadata)
    write_tensors(path, entries, (tensors[name] for name in names), metadata)


def write_large(
    path: Path, tensors: Mapping[str, Tensor], *, dtype: str, metadata: Mapping[str, str]
) -> None:
    """A file of any size, tensor by tensor: whole numbers as they are, all others in `dtype`.

    Its tensors are cast one at a time, so that no second copy of a base is ever held.
    """

    entries = {
        key: entry_of(one, DTYPES[dtype] if one.is_floating_point() else None) for key, one in tensors.items()
    }
    values = (one.detach().to(getattr(torch, entries[key].dtype)) for key, one in tensors.items())
    write_tensors(path, entries, values, metadata)


def write_tensors(
    path: Path, entries: Mapping[str, TensorEntry], values: Iterable[Tensor], metadata: Mapping[str, str]
) -> None:
    """A file from tensors that come one by one, in the order of `entries`; named when it is complete."""
    with writing_atomically(path) as file:
        file.write(header_bytes(places_of(entries), metadata))
        for (name, entry), tensor in zip(entries.items(), values, strict=True):
            made = entry_of(tensor)
            assert (made.dtype, made.shape) == (entry.dtype, entry.shape), name
            file.write(raw(tensor))


def raw(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)


def cast_error(tensors: Mapping[str, Tensor], dtype: str) -> float:
    """The largest error that a dtype causes in any of the tensors, relative to its largest number.

    Raises ExportMismatch when a value does not fit into the dtype.
    """
    worst, overflown = 0.0, []
    for key, tensor in tensors.items():
        exact = tensor.detach()
        cast = exact.to(DTYPES[dtype])
        if not cast.isfinite().all():
            overflown.append(key)
        elif size := exact.abs().max().item() if exact.numel() else 0.0:
            worst = max(worst, (cast.float() - exact.float()).abs().max().item() / size)
    if overflown:
        raise ExportMismatch(
            f"numbers of {plural(len(overflown), 'tensor')} do not fit into {dtype}, first {overflown[0]}; "
            'give --dtype float32, or set export.dtype = "float32" in the recipe.'
        )
    return worst

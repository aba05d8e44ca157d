"""Write a finished LoRA file: cast, header, atomic."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from lora_studio.errors import ExportMismatch
from lora_studio.files import write_atomically, writing_atomically
from lora_studio.lora_file.header import DTYPES as FORMAT_DTYPES

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
LEGACY = (0x100000, 0x110000)  # the bytes that the older hash is of
_NAMES = {dtype: name for name, dtype in FORMAT_DTYPES.items()}


def write_lora(
    path: Path, tensors: dict[str, Tensor], *, dtype: str, describe: Callable[[bytes], dict[str, str]]
) -> float:
    """Write float32 `tensors` in `dtype`; `describe` makes the metadata from the finished tensor block.

    Answers the largest relative error that casting caused in any tensor. Raises ExportMismatch when a value
    does not fit into the dtype, in which case nothing is written.
    """
    error = cast_error(tensors, dtype)
    cast = {key: tensor.to(DTYPES[dtype]) for key, tensor in tensors.items()}
    plain = save(cast)
    metadata = describe(tensor_block(plain))
    if "sshs_model_hash" in metadata:
        metadata |= {"sshs_legacy_hash": legacy_hash(header_of(plain), [tensor_block(plain)], metadata)}
    write_atomically(path, with_metadata(plain, metadata))
    return error


def write_large(
    path: Path, tensors: Mapping[str, Tensor], *, dtype: str, metadata: Mapping[str, str]
) -> None:
    """A file of any size, tensor by tensor: whole numbers as they are, all others in `dtype`.

    Its tensors are cast one at a time, so that no second copy of a base is ever held.
    """

    def kept(tensor: Tensor) -> torch.dtype:
        return DTYPES[dtype] if tensor.is_floating_point() else tensor.dtype

    entries = [TensorSpec(key, kept(one), tuple(one.shape)) for key, one in tensors.items()]
    write_tensors(path, entries, (one.detach().to(kept(one)) for one in tensors.values()), metadata)


class TensorSpec(NamedTuple):
    """A tensor of a file that is not there yet."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


def write_tensors(
    path: Path, entries: Sequence[TensorSpec], values: Iterable[Tensor], metadata: Mapping[str, str]
) -> None:
    """A safetensors file from tensors that come one by one, in the order of `entries`.

    It gets its name when all of it is on the disk.
    """
    with writing_atomically(path) as file:
        file.write(header_bytes(places_of(entries), metadata))
        for entry, tensor in zip(entries, values, strict=True):
            assert (tensor.dtype, tuple(tensor.shape)) == entry[1:], entry.name
            file.write(raw(tensor))


def raw(tensor: Tensor) -> memoryview:
    """A tensor's bytes, as they stand in a file."""
    return memoryview(tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)


def places_of(entries: Iterable[TensorSpec]) -> dict[str, dict[str, Any]]:
    """What a header says of each tensor, one after the other."""
    places: dict[str, dict[str, Any]] = {}
    place = 0
    for name, dtype, shape in entries:
        end = place + dtype.itemsize * math.prod(shape)
        places[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [place, end]}
        place = end
    return places


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
            f"{len(overflown)} tensors do not fit into {dtype}, first {overflown[0]}; "
            'set export.dtype = "float32".'
        )
    return worst


def tensor_hash(block: Iterable[bytes | memoryview]) -> str:
    """`sshs_model_hash`: sha256 of all after the header, by which A1111 and Forge know a file.

    Its first 12 digits are Civitai's AutoV3.
    """
    digest = hashlib.sha256()
    for piece in block:
        digest.update(piece)
    return digest.hexdigest()


def tensor_block(content: bytes) -> bytes:
    """A safetensors file without its header."""
    (length,) = struct.unpack("<Q", content[:8])
    return content[8 + length :]


def with_metadata(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """A safetensors file with other metadata, in alphabetical order.

    safetensors itself writes them in the order of a hash map, which differs from run to run; equal runs shall
    give equal bytes.
    """
    return header_bytes(header_of(content), metadata) + tensor_block(content)


def header_of(content: bytes) -> dict[str, Any]:
    """What the header of a safetensors file says."""
    (length,) = struct.unpack("<Q", content[:8])
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    return header


def header_bytes(tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """What stands before the tensors, padded with spaces to a multiple of 8, as the format asks."""
    said = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    own = {name: entry for name, entry in tensors.items() if name != "__metadata__"}
    text = json.dumps(said | own, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def legacy_hash(
    tensors: Mapping[str, Any], block: Iterable[bytes | memoryview], metadata: Mapping[str, str]
) -> str:
    """`sshs_legacy_hash`: of 64 KiB behind the first MiB of the file with its `ss_*` metadata alone.

    8 hex digits, as kohya's trainer and A1111's older extension for LoRAs count them; of smaller files they
    are those of nothing.
    """
    trained = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    digest, place = hashlib.sha256(), 0
    for piece in (header_bytes(tensors, trained), *block):
        digest.update(piece[max(0, LEGACY[0] - place) : max(0, LEGACY[1] - place)])
        place += len(piece)
    return digest.hexdigest()[:8]

"""Write a finished LoRA file: cast, header, atomic."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from lora_studio.errors import ExportMismatch
from lora_studio.export.header import DTYPES as FORMAT_DTYPES
from lora_studio.run import write_atomically, writing_atomically

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
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
        metadata |= {"sshs_legacy_hash": legacy_hash(plain, metadata)}
    write_atomically(path, with_metadata(plain, metadata))
    return error


def write_large(
    path: Path, tensors: Mapping[str, Tensor], *, dtype: str, metadata: Mapping[str, str]
) -> None:
    """A file of any size, tensor by tensor: whole numbers as they are, all others in `dtype`.

    Its tensors are cast one at a time, so that no second copy of a base is ever held.
    """
    header, place = {}, 0
    for key, tensor in tensors.items():
        kept = DTYPES[dtype] if tensor.is_floating_point() else tensor.dtype
        end = place + tensor.numel() * kept.itemsize
        header[key] = {"dtype": _NAMES[kept], "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    with writing_atomically(path) as file:
        file.write(header_bytes(header, metadata))
        for tensor in tensors.values():
            cast = tensor.detach().to(DTYPES[dtype] if tensor.is_floating_point() else tensor.dtype)
            file.write(cast.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)


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


def tensor_hash(block: Iterable[bytes]) -> str:
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
    (length,) = struct.unpack("<Q", content[:8])
    return header_bytes(json.loads(content[8 : 8 + length]), metadata) + content[8 + length :]


def header_bytes(tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """What stands before the tensors, padded with spaces to a multiple of 8, as the format asks."""
    said = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    own = {name: entry for name, entry in tensors.items() if name != "__metadata__"}
    text = json.dumps(said | own, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def legacy_hash(content: bytes, metadata: Mapping[str, str]) -> str:
    """`sshs_legacy_hash`: of 64 KiB behind the first MiB of the file with its `ss_*` metadata alone.

    8 hex digits, as kohya's trainer and A1111's older extension for LoRAs count them; of smaller files they
    are those of nothing.
    """
    (length,) = struct.unpack("<Q", content[:8])
    trained = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    header = header_bytes(json.loads(content[8 : 8 + length]), trained)
    shift = 8 + length - len(header)
    first, last = max(0x100000, len(header)), max(0x110000, len(header))
    before = header[0x100000:0x110000]
    return hashlib.sha256(before + content[first + shift : last + shift]).hexdigest()[:8]

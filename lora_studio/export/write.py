"""Write a finished LoRA file: cast, header, atomic."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from lora_studio.errors import ExportMismatch
from lora_studio.run import write_atomically, writing_atomically

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_NAMES = {
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.int64: "I64",
}  # the format's


def write_lora(
    path: Path, tensors: dict[str, Tensor], *, dtype: str, describe: Callable[[bytes], dict[str, str]]
) -> float:
    """Write float32 `tensors` in `dtype`; `describe` makes the metadata from the finished tensor block.

    Answers the largest relative error that casting caused in any tensor. Raises ExportMismatch when a value
    does not fit into the dtype, in which case nothing is written.
    """
    error = cast_error(tensors, dtype)
    cast = {key: tensor.to(DTYPES[dtype]) for key, tensor in tensors.items()}
    block = tensor_block(save(cast))
    content = save(cast, metadata=dict(sorted(describe(block).items())))
    write_atomically(path, _with_sorted_metadata(content))
    return error


def write_large(
    path: Path, tensors: Mapping[str, Tensor], *, dtype: str, metadata: Mapping[str, str]
) -> None:
    """A file of any size, tensor by tensor: whole numbers as they are, all others in `dtype`.

    Its tensors are cast one at a time, so that no second copy of a base is ever held.
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    place = 0
    for key, tensor in tensors.items():
        kept = DTYPES[dtype] if tensor.is_floating_point() else tensor.dtype
        end = place + tensor.numel() * kept.itemsize
        header[key] = {"dtype": _NAMES[kept], "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    with writing_atomically(path) as file:
        file.write(_header_bytes(header))
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


def tensor_block(content: bytes) -> bytes:
    """A safetensors file without its header."""
    (length,) = struct.unpack("<Q", content[:8])
    return content[8 + length :]


def _with_sorted_metadata(content: bytes) -> bytes:
    """The same file with its header's metadata in alphabetical order.

    safetensors writes metadata in the order of a hash map, which differs from run to run; equal runs shall
    give equal bytes. The header is padded with spaces to a multiple of 8, as the format asks.
    """
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    return _header_bytes(header) + content[8 + length :]


def _header_bytes(header: Mapping[str, object]) -> bytes:
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text

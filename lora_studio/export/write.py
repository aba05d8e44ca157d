"""Write a finished LoRA file: cast, header, atomic."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from lora_studio.errors import ExportMismatch
from lora_studio.run import write_atomically

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def write_lora(
    path: Path, tensors: dict[str, Tensor], *, dtype: str, describe: Callable[[bytes], dict[str, str]]
) -> float:
    """Write float32 `tensors` in `dtype`; `describe` makes the metadata from the finished tensor block.

    Answers the largest relative error that casting caused in any tensor. Raises ExportMismatch when a value
    does not fit into the dtype, in which case nothing is written.
    """
    cast = {key: tensor.to(DTYPES[dtype]) for key, tensor in tensors.items()}
    overflown = [key for key, tensor in cast.items() if not tensor.isfinite().all()]
    if overflown:
        raise ExportMismatch(
            f"{len(overflown)} tensors do not fit into {dtype}, first {overflown[0]}; "
            'set export.dtype = "float32".'
        )
    block = tensor_block(save(cast))
    content = save(cast, metadata=dict(sorted(describe(block).items())))
    write_atomically(path, _with_sorted_metadata(content))
    return max(_relative_error(tensors[key], cast[key]) for key in tensors)


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
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def _relative_error(exact: Tensor, cast: Tensor) -> float:
    size = exact.abs().max().item()
    return (cast.float() - exact).abs().max().item() / size if size else 0.0

"""A safetensors file's header, read by hand under limits, and its tensors, each read when it is asked for.

8 bytes with the header's length, JSON of names, dtypes, shapes and places, then the tensors without a gap.
Nothing that a file says is believed before it is compared with the bytes that are there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_studio.errors import DamagedFile, StudioError, reason_of

MAX_HEADER_BYTES = 10_000_000  # 20 times that of the largest LoRA files; the format allows 100 MB
MAX_SEPARATORS = 1_000_000  # commas and brackets in it: small values make the largest objects
MAX_TENSORS = 20_000
MAX_NAME = 500  # letters
MAX_DIMENSIONS = 8
MAX_NUMBERS = 2**48  # in a tensor, those of length 0 counted as 1
CHUNK_BYTES = 1 << 24

DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8},
}


@dataclass(frozen=True)
class TensorEntry:
    """A tensor as the header has it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int  # bytes behind the header
    end: int


@dataclass(frozen=True)
class Header:
    """What a file holds, of which nothing but names, shapes and metadata was read."""

    path: Path
    length: int  # bytes before the first tensor
    entries: dict[str, TensorEntry]
    metadata: dict[str, str]

    def tensor(self, key: str) -> Tensor:
        """A tensor's values. Raises StudioError if the file is no longer what it was."""
        entry = self.entries[key]
        return self._numbers(entry, entry.begin, entry.end).reshape(entry.shape)

    def chunks(self, key: str) -> Iterator[Tensor]:
        """Its values one after the other, [n], so that the largest tensor takes little memory."""
        entry = self.entries[key]
        for begin in range(entry.begin, entry.end, CHUNK_BYTES):
            yield self._numbers(entry, begin, min(begin + CHUNK_BYTES, entry.end))

    def block(self) -> Iterator[bytes]:
        """All behind the header, in pieces."""
        with self.path.open("rb") as file:
            file.seek(self.length)
            while piece := file.read(CHUNK_BYTES):
                yield piece

    def _numbers(self, entry: TensorEntry, begin: int, end: int) -> Tensor:
        if begin == end:
            return torch.empty(0, dtype=entry.dtype)
        try:
            with self.path.open("rb") as file:
                file.seek(self.length + begin)
                content = bytearray(file.read(end - begin))
        except OSError as error:
            raise StudioError(f"{self.path} cannot be read: {reason_of(error)}.") from None
        if len(content) != end - begin:
            raise StudioError(f"{self.path} has become shorter while it was read; try it again.")
        return torch.frombuffer(content, dtype=entry.dtype)


class Stored(Mapping[str, Tensor]):
    """Tensors by short names, each read from the file when it is asked for."""

    def __init__(self, header: Header, keys: Mapping[str, str]) -> None:
        self.header, self.keys_of = header, keys

    def __getitem__(self, name: str) -> Tensor:
        return self.header.tensor(self.keys_of[name])

    def __contains__(self, name: object) -> bool:
        return name in self.keys_of  # what Mapping does would read the tensor

    def entry(self, name: str) -> TensorEntry:
        """What the header says of a tensor, which is not read."""
        return self.header.entries[self.keys_of[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys_of)

    def __len__(self) -> int:
        return len(self.keys_of)


def read_header(path: Path) -> Header:
    """Look at a file. Raises StudioError if it is missing; DamagedFile if damaged, or beyond a limit."""
    if path.is_dir():
        raise StudioError(f"{path} is a folder; give the path of a .safetensors file.")
    if not path.is_file():
        raise StudioError(f"there is no file at {path}; give the path of a .safetensors file.")
    try:
        with path.open("rb") as file:
            length, size = int.from_bytes(file.read(8), "little"), path.stat().st_size
            text = file.read(length) if length <= min(MAX_HEADER_BYTES, size) else b""
    except OSError as error:
        raise StudioError(f"{path} cannot be read: {reason_of(error)}.") from None
    try:
        if size < 8 or length + 8 > size:
            raise _Fault(f"it has {size:,} bytes, fewer than its header needs")
        return Header(path, 8 + length, *_parse(text, length, size - 8 - length))
    except _Fault as fault:
        raise DamagedFile(
            f"{path} is not a whole safetensors file ({fault}); it may be cut short or made to do harm, "
            "so get it again from where it came."
        ) from None


class _Fault(Exception):
    """What is wrong with a header, to stand in brackets."""


def _parse(text: bytes, length: int, num_bytes: int) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    if length > MAX_HEADER_BYTES:
        raise _Fault(f"its header has {length:,} bytes; {MAX_HEADER_BYTES:,} are the most")
    if sum(map(text.count, (b",", b"[", b"{"))) > MAX_SEPARATORS:
        raise _Fault(f"its header lists more than {MAX_SEPARATORS:,} values")
    try:
        header: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise _Fault("its header is not JSON") from None
    if not isinstance(header, dict):
        raise _Fault("its header is not a table of names")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(one, str) for one in metadata.values()):
        raise _Fault("its metadata is not a table of texts")
    if any(not _is_text(one) for pair in metadata.items() for one in pair):
        raise _Fault("its metadata holds half a letter")
    if len(header) > MAX_TENSORS:
        raise _Fault(f"it names {len(header):,} tensors; {MAX_TENSORS:,} are the most")
    entries = {name: _entry(name, value) for name, value in header.items()}
    _check_places(entries, num_bytes)
    return entries, metadata


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # one of a pair of surrogates
        return False
    return True


def _entry(name: str, value: Any) -> TensorEntry:
    if not name.isprintable() or len(name) > MAX_NAME:
        raise _Fault(f"a tensor is called {name[:60]!a}")
    try:
        dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise _Fault(f"{name} has no dtype, shape and place") from None
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _Fault(f"{name} has the unknown dtype {ascii(dtype)[:60]}")
    if not isinstance(shape, list) or not all(type(one) is int and one >= 0 for one in (*shape, begin, end)):
        raise _Fault(f"{name} has a shape or place that is no number")
    if len(shape) > MAX_DIMENSIONS or math.prod(max(one, 1) for one in shape) > MAX_NUMBERS:
        raise _Fault(f"{name} has an absurd shape of {len(shape)} dimensions")
    if math.prod(shape) * DTYPES[dtype].itemsize != end - begin:
        raise _Fault(f"{name} has a place of another size than its shape and dtype")
    return TensorEntry(DTYPES[dtype], tuple(shape), begin, end)


def _check_places(entries: dict[str, TensorEntry], num_bytes: int) -> None:
    """Without gaps and overlaps, to the end of the file."""
    reached = 0
    for name, entry in sorted(entries.items(), key=lambda one: (one[1].begin, one[1].end)):
        if entry.begin != reached:
            what = "overlaps another tensor" if entry.begin < reached else "lies behind a gap"
            raise _Fault(f"{name} {what}")
        reached = entry.end
    if reached != num_bytes:
        raise _Fault(f"it has {num_bytes:,} bytes of tensors and should have {reached:,}")


def open_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """By key, and what the file says about itself. Raises StudioError if it is not there or not whole."""
    header = read_header(path)
    return {key: header.tensor(key) for key in header.entries}, header.metadata

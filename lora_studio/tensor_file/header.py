"""A safetensors file's header, read by hand under limits and written; tensors are read when asked for.

8 bytes with the header's length, JSON of names, dtypes, shapes and places, then the tensors without a gap.
Nothing that a file says is believed before it is compared with the bytes that are there. Only who asks for a
tensor, and not for an array, waits for torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_studio.errors import DamagedFile, StudioError, reason_of
from lora_studio.tensor_file.instead import START_BYTES, what_instead

if TYPE_CHECKING:
    from torch import Tensor

MAX_HEADER_BYTES = 10_000_000  # 20 times that of the largest LoRA files; the format allows 100 MB
MAX_SEPARATORS = 1_000_000  # commas and brackets in it: small values make the largest objects
MAX_TENSORS = 20_000
MAX_NAME = 500  # letters
MAX_DIMENSIONS = 8
MAX_NUMBERS = 2**48  # in a tensor, those of length 0 counted as 1
CHUNK_BYTES = 1 << 24

DTYPES = {  # the format's name -> torch's
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8"},
    **{"U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8"},
}
_CODES = {name: code for code, name in DTYPES.items()}
_EIGHTS = {"bool": 1, "float8_e4m3fn": 1, "float8_e5m2": 1, "bfloat16": 2}
LEGACY = (0x100000, 0x110000)  # the bytes that the older hash is of


def itemsize(dtype: str) -> int:
    return _EIGHTS.get(dtype) or np.dtype(dtype).itemsize


@dataclass(frozen=True)
class TensorEntry:
    dtype: str  # torch's name, without torch
    shape: tuple[int, ...]
    begin: int = 0  # bytes behind the header
    end: int = 0


@dataclass(frozen=True)
class Header:
    """What a file holds, of which nothing but names, shapes and metadata was read."""

    path: Path
    length: int  # bytes before the first tensor
    entries: dict[str, TensorEntry]
    metadata: dict[str, str]

    def tensor(self, key: str) -> Tensor:
        """A tensor's values. Raises StudioError if the file is no longer what it was."""
        import torch

        entry = self.entries[key]
        dtype: torch.dtype = getattr(torch, entry.dtype)
        if entry.begin == entry.end:
            return torch.empty(entry.shape, dtype=dtype)
        return torch.frombuffer(self._content(key), dtype=dtype).reshape(entry.shape)

    def array(self, key: str) -> np.ndarray[Any, Any]:
        """The same for numpy, which has no bfloat16 and no 8 bits: those are float32 then."""
        entry = self.entries[key]
        if entry.dtype == "bfloat16":
            halves = np.frombuffer(self._content(key), np.uint16)
            return (halves.astype(np.uint32) << 16).view(np.float32).reshape(entry.shape)
        if entry.dtype.startswith("float8"):
            return self.tensor(key).float().numpy()
        return np.frombuffer(self._content(key), entry.dtype).reshape(entry.shape)

    def chunks(self, key: str) -> Iterator[bytearray]:
        """Its bytes one after the other, so that the largest tensor takes little memory."""
        entry = self.entries[key]
        begins = range(entry.begin, entry.end, CHUNK_BYTES)
        return self._pieces((begin, min(begin + CHUNK_BYTES, entry.end)) for begin in begins)

    def block(self) -> Iterator[bytes]:
        """All behind the header, in pieces."""
        with self.path.open("rb") as file:
            file.seek(self.length)
            while piece := file.read(CHUNK_BYTES):
                yield piece

    def _content(self, key: str) -> bytearray:
        entry = self.entries[key]
        if math.prod(entry.shape) == 1:
            return bytearray(self._numbers[key])
        return next(self._pieces([(entry.begin, entry.end)]))

    @cached_property
    def _numbers(self) -> dict[str, bytearray]:
        """The tensors of a single number, read together: a LoRA file has hundreds of alphas."""
        numbers = {key: entry for key, entry in self.entries.items() if math.prod(entry.shape) == 1}
        pieces = self._pieces((one.begin, one.end) for one in numbers.values())
        return dict(zip(numbers, pieces, strict=True))

    def _pieces(self, places: Iterable[tuple[int, int]]) -> Iterator[bytearray]:
        try:
            with self.path.open("rb") as file:
                for begin, end in places:
                    file.seek(self.length + begin)
                    content = bytearray(file.read(end - begin))
                    if len(content) != end - begin:
                        raise StudioError(f"{self.path} has become shorter while it was read; try it again.")
                    yield content
        except OSError as error:
            raise StudioError(f"{self.path} cannot be read: {reason_of(error)}.") from None


def read_header(path: Path, *, limit: int = MAX_HEADER_BYTES) -> Header:
    """Look at a file. Raises StudioError if it is missing; DamagedFile if it is none, damaged, or too large.

    What is read here, every reader of safetensors reads.
    """
    if os.path.isdir(path):
        raise StudioError(f"{path} is a folder; give the path of a .safetensors file.")
    if not os.path.isfile(path):
        raise StudioError(f"there is no file at {path}; give the path of a .safetensors file.")
    try:
        with path.open("rb") as file:
            start, size = file.read(START_BYTES), path.stat().st_size
            if instead := what_instead(start):
                raise DamagedFile(f"{path.name} is not a safetensors file but {instead}.")
            file.seek(8)
            length = int.from_bytes(start[:8], "little")
            text = file.read(length) if length <= min(limit, size) else b""
    except OSError as error:
        raise StudioError(f"{path} cannot be read: {reason_of(error)}.") from None
    try:
        if length > limit and size > 8 + limit:
            raise _Fault(f"its header has {length:,} bytes; {limit:,} are the most")
        if size < 8 or length + 8 > size:
            raise _CutShort(f"it has {size:,} bytes and should have more than {8 + length:,}")
        return Header(path, 8 + length, *_parse(text, size))
    except _CutShort as fault:
        raise DamagedFile(f"{path.name} is cut short: {fault}; download it again.") from None
    except _Fault as fault:
        raise DamagedFile(
            f"{path.name} is not a valid safetensors file ({fault}); it is truncated, damaged or made to do "
            "harm: download it again."
        ) from None


class _Fault(Exception):
    """What is wrong with a header, in brackets."""


class _CutShort(_Fault):
    pass


def _parse(text: bytes, size: int) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    if sum(map(text.count, (b",", b"[", b"{"))) > MAX_SEPARATORS:
        raise _Fault(f"its header lists more than {MAX_SEPARATORS:,} values")
    if text[:1] != b"{":
        raise _Fault("its header does not begin as a table of names")
    try:
        header: dict[str, Any] = _JSON.decode(text.decode("utf-8"))
    except (ValueError, RecursionError):
        raise _Fault("its header is not JSON") from None
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(one, str) for one in metadata.values()):
        raise _Fault("its metadata is not a table of texts")
    if re.search("[\ud800-\udfff]", "".join((*metadata, *metadata.values()))):
        raise _Fault("its metadata holds half a letter")
    if len(header) > MAX_TENSORS:
        raise _Fault(f"it names {len(header):,} tensors; {MAX_TENSORS:,} are the most")
    entries = {name: _entry(name, value) for name, value in header.items()}
    _check_places(entries, 8 + len(text), size)
    return entries, metadata


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON lets a name stand twice, and readers differ in which of the two counts."""
    table = dict(pairs)
    if len(table) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise _Fault(f"its header has {twice[:60]!a} twice")
    return table


def _no_number(text: str) -> int:
    raise ValueError(text)


def _whole(text: str) -> int:
    """Python takes -0 for 0, and other readers for a fraction."""
    return _no_number(text) if text.startswith("-") else int(text)


_JSON = json.JSONDecoder(object_pairs_hook=_table, parse_int=_whole, parse_constant=_no_number)
_FIELDS = {"dtype", "shape", "data_offsets"}


def _entry(name: str, value: Any) -> TensorEntry:
    if not name.isprintable() or len(name) > MAX_NAME:
        raise _Fault(f"a tensor is called {name[:60]!a}")
    if not isinstance(value, dict) or value.keys() != _FIELDS or not _is_pair(value["data_offsets"]):
        raise _Fault(f"{name} has not just dtype, shape and place")
    dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _Fault(f"{name} has the unknown dtype {ascii(dtype)[:60]}")
    if not isinstance(shape, list) or {type(one) for one in (*shape, begin, end)} != {int}:
        raise _Fault(f"{name} has a shape or place that is no number")
    numbers = math.prod(shape)
    if len(shape) > MAX_DIMENSIONS or (numbers or math.prod(filter(None, shape))) > MAX_NUMBERS:
        raise _Fault(f"{name} has an absurd shape of {len(shape)} dimensions")
    if numbers * itemsize(DTYPES[dtype]) != end - begin:
        raise _Fault(f"{name} has a place of another size than its shape and dtype")
    return TensorEntry(DTYPES[dtype], tuple(shape), begin, end)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


def _check_places(entries: dict[str, TensorEntry], start: int, size: int) -> None:
    """Without gaps and overlaps, from `start` to the end of the file."""
    reached = 0
    for name, entry in sorted(entries.items(), key=lambda one: (one[1].begin, one[1].end)):
        if entry.begin != reached:
            raise _Fault(
                name + (" overlaps another tensor" if entry.begin < reached else " lies behind a gap")
            )
        reached = entry.end
    if start + reached != size:
        what = f"it has {size:,} bytes and should have {start + reached:,}"
        raise _CutShort(what) if size < start + reached else _Fault(what)


def open_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """By key, and what the file says about itself. Raises StudioError if it is missing or damaged."""
    header = read_header(path)
    return {key: header.tensor(key) for key in header.entries}, header.metadata


def places_of(entries: Mapping[str, TensorEntry]) -> dict[str, dict[str, Any]]:
    """What a header says of each tensor, one after the other, wherever they were before."""
    places, place = {}, 0
    for name, one in entries.items():
        end = place + itemsize(one.dtype) * math.prod(one.shape)
        places[name] = {"dtype": _CODES[one.dtype], "shape": list(one.shape), "data_offsets": [place, end]}
        place = end
    return places


def tensor_hash(block: Iterable[bytes | memoryview]) -> str:
    """`sshs_model_hash`: sha256 of all after the header, by which A1111 and Forge know a file.

    Its first 12 digits are Civitai's AutoV3.
    """
    digest = hashlib.sha256()
    for piece in block:
        digest.update(piece)
    return digest.hexdigest()


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

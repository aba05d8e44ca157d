"""Results as files: tensor by tensor, in a given dtype, atomically, and never over anything."""

from __future__ import annotations

import hashlib
import json
import math
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lora_studio.adapters.kind import Factors
from lora_studio.compose.factors import balanced, energy, stacked
from lora_studio.errors import ExportMismatch, StudioError
from lora_studio.export.write import DTYPES
from lora_studio.run import sync

_WORDS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Entry(NamedTuple):
    """A tensor of a file that is not there yet."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


def check_output(path: Path, *, force: bool, inputs: Sequence[Path] = ()) -> None:
    """Raise StudioError if writing there would replace something; inputs are never replaced."""
    if any(path.exists() and one.exists() and path.samefile(one) for one in inputs):
        raise StudioError(f"{path} is what is read; give another path with -o.")
    if path.is_dir() or (path.exists() and not force):
        advice = "give another path with -o" if path.is_dir() else "give another path with -o, or --force"
        raise StudioError(f"{path} is there already; {advice}.")


def write_tensors(
    path: Path, entries: Sequence[Entry], values: Iterable[Tensor], metadata: Mapping[str, str]
) -> None:
    """A safetensors file from tensors that come one by one, in the order of `entries`.

    It gets its name when all of it is on the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".lora-studio-{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(_header(entries, metadata))
            for entry, tensor in zip(entries, values, strict=True):
                assert (tensor.dtype, tuple(tensor.shape)) == entry[1:], entry.name
                file.write(raw(tensor))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def raw(tensor: Tensor) -> memoryview:
    """A tensor's bytes, as they stand in a file."""
    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _header(entries: Sequence[Entry], metadata: Mapping[str, str]) -> bytes:
    """The length of what follows, then JSON, padded with spaces to a multiple of 8."""
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    place = 0
    for name, dtype, shape in entries:
        end = place + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": _WORDS[dtype], "shape": list(shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class Result:
    """A LoRA file in the making: its layers, cast as they come, and what casting cost."""

    def __init__(self, dtype: str, alpha: float) -> None:
        """`alpha` of every layer; the scale that a layer's rank makes of it goes into its factors."""
        if dtype not in DTYPES:
            raise StudioError(f"--dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}.")
        self.dtype = DTYPES[dtype]
        self._alpha = torch.tensor(alpha).to(self.dtype)  # as it can be written
        self.tensors: dict[str, Tensor] = {}
        self.ranks: dict[str, int] = {}
        self._error = self.energy = 0.0  # sums of squares: of what rounding took, and of all changes

    @property
    def alpha(self) -> float:
        """Of every layer."""
        return float(self._alpha.item())

    @property
    def cast_error(self) -> float:
        """What the dtype rounded away: the norm of it, relative to the norm of all changes."""
        return math.sqrt(self._error / self.energy) if self.energy else 0.0

    def add(self, name: str, factors: Factors, shape: Sequence[int]) -> None:
        """A layer whose weight has this shape. Raises ExportMismatch if it does not fit into the dtype."""
        rank = len(factors.down)
        scaled = balanced(Factors(factors.down, factors.up * (rank / self.alpha)))
        down, up = (one.to(self.dtype) for one in scaled)
        if not (down.isfinite().all() and up.isfinite().all()):
            raise ExportMismatch(f"{name} does not fit into {self.dtype}; give --dtype float32.")
        self._error += _rounded_away(scaled, Factors(down, up)) * (self.alpha / rank) ** 2
        self.energy += energy(factors)
        self.ranks[name] = rank
        self.tensors[f"{name}.lora_down.weight"] = down.view(rank, *shape[1:])
        self.tensors[f"{name}.lora_up.weight"] = up.view(shape[0], rank, *(1 for _ in shape[2:]))
        self.tensors[f"{name}.alpha"] = self._alpha

    def write(self, path: Path, metadata: Mapping[str, str]) -> int:
        """Write it, with the hashes that UIs know it by; how many bytes it has."""
        names = sorted(self.tensors)  # safetensors' own order where all have one dtype
        entries = [Entry(name, self.dtype, tuple(self.tensors[name].shape)) for name in names]
        hashes = block_hashes(raw(self.tensors[name]) for name in names)
        write_tensors(path, entries, (self.tensors[name] for name in names), {**metadata, **hashes})
        return path.stat().st_size


def _rounded_away(exact: Factors, cast: Factors) -> float:
    """The sum of squares of the difference of two changes whose factors are nearly the same.

    From the factors' differences, so that float32 is enough and nothing cancels.
    """
    off = [
        Factors(exact.down.float(), (exact.up - cast.up).float()),
        Factors((exact.down - cast.down).float(), cast.up.float()),
    ]
    return energy(stacked(off))


def block_hashes(pieces: Iterable[memoryview]) -> dict[str, str]:
    """The hashes of everything after a file's header, as A1111 and kohya take them."""
    whole, middle, place = hashlib.sha256(), hashlib.sha256(), 0
    for piece in pieces:
        whole.update(piece)
        middle.update(piece[max(0, 0x100000 - place) : max(0, 0x110000 - place)])
        place += len(piece)
    return {"sshs_model_hash": whole.hexdigest(), "sshs_legacy_hash": middle.hexdigest()[:8]}


def in_order(layers: Mapping[str, object], more: Iterable[Mapping[str, object]]) -> Iterator[str]:
    """The names of all layers of several files, each once."""
    yield from dict.fromkeys([*layers, *(name for other in more for name in other)])

"""A folder of small safetensors files, written whole or not at all, checked when read; latents from it."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, contiguous_format, uint8

from lora_studio.errors import DatasetError
from lora_studio.processes import to_device

_DAY = 24 * 3600.0


class TensorStore:
    """Key -> tensors. Processes may share the folder: whoever writes last wins, with the same content."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, key: str) -> dict[str, Tensor] | None:
        """The tensors stored under the key, or None if there are none or the file is damaged."""
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
                digest = (file.metadata() or {}).get("digest")
        except (OSError, SafetensorError):  # missing, cut short, or not safetensors: all are made again
            return None
        if digest != _digest(tensors):
            return None
        mark_as_used(path)
        return tensors

    def has(self, key: str) -> bool:
        """Whether there is a file of this key; it may still turn out to be damaged."""
        return self._path(key).is_file()

    def save(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Write the tensors under the key. Raises DatasetError if the disk refuses."""
        # Cloned, since safetensors refuses tensors that share memory, as outputs of one encoder may.
        copies = {k: one.detach().cpu().clone(memory_format=contiguous_format) for k, one in tensors.items()}
        data = save(copies, metadata={"digest": _digest(copies)})
        temporary = self.folder / f"{key}.{uuid.uuid4().hex}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(data)
                os.replace(temporary, self._path(key))
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            message = f"the cache folder {self.folder} cannot be written to ({error.strerror or error})"
            raise DatasetError(f"{message}; free space there or choose another folder.") from None

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def mark_as_used(path: Path) -> None:
    """Give the file today's date, so that `cache prune` knows what has not been used for long."""
    try:
        if time.time() - path.stat().st_mtime > _DAY:
            os.utime(path)
    except OSError:  # a cache that may only be read is one all the same
        pass


def _digest(tensors: dict[str, Tensor]) -> str:
    """Of names, types, shapes and contents; the format itself does not notice a changed or zeroed body."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Latent:
    """What the VAE says about an image: mean and standard deviation, each [C, H, W], float32, scaled."""

    mean: Tensor
    std: Tensor

    def to(self, device: torch.device) -> Latent:
        return Latent(self.mean.to(device), self.std.to(device))

    @property
    def is_finite(self) -> bool:
        return bool(self.mean.isfinite().all() and self.std.isfinite().all())


def sample_latents(latents: Sequence[Latent], rng: torch.Generator) -> Tensor:
    """[B, C, H, W]: one draw of each, all of one size; noise is made on the CPU, so that devices agree."""
    noise = torch.stack([torch.randn(one.mean.shape, generator=rng) for one in latents])
    mean, std = torch.stack([one.mean for one in latents]), torch.stack([one.std for one in latents])
    return mean + std * to_device(noise, mean.device)


def load_latent(store: TensorStore, key: str) -> Latent | None:
    tensors = store.load(key)
    return Latent(tensors["mean"], tensors["std"]) if tensors else None


class Latents(Sequence[Latent]):
    """One latent for each key, in their order, from `add`; the store must hold it, too.

    They stay in memory while they take at most `memory_bytes`; beyond that each is mapped from its file when
    it is asked for, with a DatasetError if that has gone, and only names and numbers are in memory.
    """

    def __init__(self, store: TensorStore, keys: Sequence[str], *, memory_bytes: int | None = None) -> None:
        self._store, self._keys, self._memory_bytes = store, list(keys), memory_bytes
        self._device, self._num_bytes = torch.device("cpu"), 0
        self._sizes: dict[str, int] = {}
        self._kept: dict[str, Latent] = {}

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def on_disk(self) -> bool:
        return self._memory_bytes is not None and self._num_bytes > self._memory_bytes

    def has(self, key: str) -> bool:
        return key in self._sizes

    def add(self, key: str, latent: Latent) -> None:
        """Count it, and keep it in memory unless the latents are too many for that and stay on the disk."""
        self._sizes[key] = latent.mean.numel()
        self._num_bytes += latent.mean.nbytes + latent.std.nbytes
        self._kept[key] = latent
        if self.on_disk:
            self._kept.clear()

    def to(self, device: torch.device) -> Latents:
        moved = copy(self)
        moved._device, moved._kept = device, {key: one.to(device) for key, one in self._kept.items()}
        return moved

    def size(self, index: int) -> int:
        """How many numbers a latent has, without reading it."""
        return self._sizes[self._keys[index]]

    @overload
    def __getitem__(self, index: int) -> Latent: ...
    @overload
    def __getitem__(self, index: slice) -> list[Latent]: ...
    def __getitem__(self, index: int | slice) -> Latent | list[Latent]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        key = self._keys[index]
        if not self.on_disk:
            return self._kept[key]
        if latent := load_latent(self._store, key):
            return Latent(to_device(latent.mean, self._device), to_device(latent.std, self._device))
        raise DatasetError(
            f"a latent has gone from the cache folder {self._store.folder} while it was in use; "
            "go on with --resume, which makes it again."
        )

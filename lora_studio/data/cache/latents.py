"""The latents of a run's images: all in memory, or read from the cache's files when they are asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from lora_studio.data.cache.store import TensorStore
from lora_studio.errors import DatasetError

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Latent:
    """What the VAE says about an image: mean and standard deviation, each [C, H, W], float32, scaled."""

    mean: Tensor
    std: Tensor

    def sample(self, generator: torch.Generator) -> Tensor:
        """[C, H, W]: one draw; the noise is made on the generator's device, so all devices see the same."""
        noise = torch.randn(self.mean.shape, generator=generator, device=generator.device)
        return self.mean + self.std * noise.to(self.mean)

    def to(self, device: torch.device) -> Latent:
        return Latent(self.mean.to(device), self.std.to(device))

    @property
    def is_finite(self) -> bool:
        return bool(self.mean.isfinite().all() and self.std.isfinite().all())

    @property
    def num_bytes(self) -> int:
        return self.mean.nbytes + self.std.nbytes


class Latents(Sequence[Latent]):
    """One latent for each image, in the images' order."""

    on_disk: bool

    @abstractmethod
    def to(self, device: torch.device) -> Latents:
        """The same, which gives latents on the device."""

    @abstractmethod
    def size(self, index: int) -> int:
        """How many numbers a latent has, without reading it."""

    @abstractmethod
    def _at(self, index: int) -> Latent: ...

    @overload
    def __getitem__(self, index: int) -> Latent: ...
    @overload
    def __getitem__(self, index: slice) -> list[Latent]: ...
    def __getitem__(self, index: int | slice) -> Latent | list[Latent]:
        if isinstance(index, slice):
            return [self._at(one) for one in range(*index.indices(len(self)))]
        return self._at(range(len(self))[index])


class InMemory(Latents):
    on_disk = False

    def __init__(self, latents: Sequence[Latent]) -> None:
        self._latents = list(latents)

    def __len__(self) -> int:
        return len(self._latents)

    def to(self, device: torch.device) -> InMemory:
        return InMemory([one.to(device) for one in self._latents])

    def size(self, index: int) -> int:
        return self._latents[index].mean.numel()

    def _at(self, index: int) -> Latent:
        return self._latents[index]


class OnDisk(Latents):
    """Mapped from the cache's files, a latent at a time; only names and numbers are in memory.

    A latent that is asked for and no longer there raises DatasetError.
    """

    on_disk = True

    def __init__(
        self, store: TensorStore, keys: Sequence[str], sizes: Sequence[int], device: torch.device = _CPU
    ) -> None:
        self._store, self._keys, self._sizes, self._device = store, list(keys), list(sizes), device

    def __len__(self) -> int:
        return len(self._keys)

    def to(self, device: torch.device) -> OnDisk:
        return OnDisk(self._store, self._keys, self._sizes, device)

    def size(self, index: int) -> int:
        return self._sizes[index]

    def _at(self, index: int) -> Latent:
        tensors = self._store.load(self._keys[index])
        if tensors is None:
            raise DatasetError(
                f"a latent has gone from the cache folder {self._store.folder} while it was in use; "
                "go on with --resume, which makes it again."
            )
        return Latent(tensors["mean"], tensors["std"]).to(self._device)


class LatentCollector:
    """Latents as they come in, by key: kept while they take at most `memory_bytes`, else left on the disk."""

    def __init__(self, store: TensorStore, memory_bytes: int | None) -> None:
        self._store, self._memory_bytes = store, memory_bytes
        self._sizes: dict[str, int] = {}
        self._kept: dict[str, Latent] = {}
        self._num_bytes = 0

    def __contains__(self, key: str) -> bool:
        return key in self._sizes

    def add(self, key: str, latent: Latent) -> None:
        self._sizes[key] = latent.mean.numel()
        self._num_bytes += latent.num_bytes
        if self._too_many:
            self._kept.clear()
        else:
            self._kept[key] = latent

    def in_order(self, keys: Sequence[str]) -> Latents:
        if self._too_many:
            return OnDisk(self._store, keys, [self._sizes[key] for key in keys])
        return InMemory([self._kept[key] for key in keys])

    @property
    def _too_many(self) -> bool:
        return self._memory_bytes is not None and self._num_bytes > self._memory_bytes

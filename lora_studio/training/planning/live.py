"""The most memory that a piece of work takes at one moment, in bytes of tensors."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """How many more bytes of tensors there are during the work than before it, at most.

    On CUDA the allocator's own count. Elsewhere what every operation gives back is counted until it is freed,
    in the backward pass, too; so it holds what is computed again under gradient checkpointing, which hooks on
    saved tensors do not see. What an operation uses inside itself is not in it.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return int(torch.cuda.max_memory_allocated(device) - before)
    with _LiveBytes() as live:
        work()
    return live.peak


class _LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make, each once, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._known: weakref.WeakKeyDictionary[torch.UntypedStorage, None] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = set(_storages((args, kwargs)))
        answer = func(*args, **(kwargs or {}))
        for storage in _storages(answer):
            if storage not in given and storage not in self._known:
                self._count(storage)
        return answer

    def _count(self, storage: torch.UntypedStorage) -> None:
        self._known[storage] = None
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, size)

    def _freed(self, size: int) -> None:
        self.now -= size


def _storages(tree: object) -> Iterator[torch.UntypedStorage]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            try:
                yield leaf.untyped_storage()
            except NotImplementedError:  # a quantised tensor that is made of others
                continue

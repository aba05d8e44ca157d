"""What operations take: the bytes that live at once, and the work of a device that computes them."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

CUDAS_BLOCK = 512  # bytes; CUDA's allocator gives no smaller pieces (c10/cuda/CUDACachingAllocator)


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
    with LiveBytes() as live:
        work()
    return live.peak


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make, each once, as long as they live; in whole blocks."""

    def __init__(self, *, block: int = 1) -> None:
        super().__init__()
        self.now, self.peak, self.block = 0, 0, block
        self._known: weakref.WeakKeyDictionary[torch.UntypedStorage, None] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = set(storages((args, kwargs)))
        result = func(*args, **(kwargs or {}))
        for storage in storages(result):
            if storage not in given and storage not in self._known:
                self._known[storage] = None
                size = -(-storage.nbytes() // self.block) * self.block
                self.grow(size)
                weakref.finalize(storage, self._freed, size)
        return result

    def grow(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)

    def _freed(self, size: int) -> None:
        self.now -= size


def tensors(tree: object) -> Iterator[Tensor]:
    """Of an operation's arguments or results; torch's own walk takes an eighth of a simulation's time."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple | list):
        for branch in tree:
            yield from tensors(branch)
    elif isinstance(tree, dict):
        for branch in tree.values():
            yield from tensors(branch)


def storages(tree: object) -> Iterator[torch.UntypedStorage]:
    """Of every tensor in a tree; a quantised one is counted by what it is made of."""
    for one in tensors(tree):
        try:
            yield one.untyped_storage()
        except NotImplementedError:  # a quantised tensor that is made of others
            continue


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that an operation within it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.size = max([self.size, *(one.nbytes for one in tensors(result))])
        return result


class Work(TorchDispatchMode):
    """Counts what a device has to do for the operations within it."""

    def __init__(self) -> None:
        super().__init__()
        self.flops: Counter[torch.dtype] = Counter()  # of matrix products, convolutions and attention
        self.bytes = 0  # read and written once each by all other operations
        self.launches = 0  # operations that compute something

    def plus(self, other: Work, count: float = 1) -> Work:
        """And so many times another, which is taken away if they are less than none."""
        found, dtypes = Work(), self.flops.keys() | other.flops.keys()
        found.flops = Counter({one: round(self.flops[one] + count * other.flops[one]) for one in dtypes})
        found.bytes = round(self.bytes + count * other.bytes)
        found.launches = round(self.launches + count * other.launches)
        return found

    @contextmanager
    def part(self) -> Iterator[Work]:
        """Work that is, behind it, what was counted within it."""
        part, before = Work(), Work().plus(self)
        yield part
        found = self.plus(before, -1)
        part.flops, part.bytes, part.launches = found.flops, found.bytes, found.launches

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given, read = set(storages((args, kwargs))), _num_bytes((args, kwargs))
        result = func(*args, **(kwargs or {}))
        made = set(storages(result))
        if not made or (made <= given and not func._schema.is_mutable) or "empty" in str(func):
            return result  # a number, a view, or nothing yet
        self.launches += 1
        if counted := _FLOPS.get(func.overloadpacket):
            product = next(tensors(args))
            self.flops[product.dtype] += counted(*args, **(kwargs or {}), out_val=result)
        else:
            self.bytes += read + _num_bytes(result)
        return result


def _num_bytes(tree: object) -> int:
    return sum(one.nbytes for one in tensors(tree))


_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention
_FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[_ATTENTION],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        torch.ops.aten._scaled_dot_product_flash_attention_backward
    ],
}

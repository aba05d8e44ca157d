"""What a training step does that makes the host wait for the GPU, and how many bytes lie there."""

from __future__ import annotations

import traceback
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = {"nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "_linalg_check_errors"}
BLOCK = 512  # bytes that CUDA's allocator rounds sizes up to
_pinned: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()


def pinned(tensor: Tensor) -> Tensor:
    _pinned.add(tensor.untyped_storage())
    return tensor


def _tensors_in(tree: object) -> list[Tensor]:
    leaves = [tree] if isinstance(tree, Tensor) else tree_leaves(tree)
    return [one for one in leaves if isinstance(one, Tensor)]


class LiveBytes:
    """Of the storages on a GPU that operations have made, as long as they live."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._known: weakref.WeakKeyDictionary[torch.UntypedStorage, list[int]] = weakref.WeakKeyDictionary()

    def restart(self) -> None:
        self.peak = self.now

    def see(self, tree: object) -> None:
        for one in _tensors_in(tree):
            if one.device.type == "cuda":
                storage = one.untyped_storage()
                if storage not in self._known:
                    self._known[storage] = size = [0]
                    self.resized(storage)
                    weakref.finalize(storage, self._freed, size)

    def resized(self, storage: torch.UntypedStorage) -> None:
        """Count it as it is now, if it lies on a GPU."""
        if (size := self._known.get(storage)) is not None:
            self._freed(size)
            size[0] = -(-storage.nbytes() // BLOCK) * BLOCK
            self.now += size[0]
            self.peak = max(self.peak, self.now)

    def _freed(self, size: list[int]) -> None:
        self.now -= size[0]


class Audit(TorchDispatchMode):
    """Notes what blocks while `step` is not None, each with the line of ours that asked for it."""

    def __init__(self, *, count_bytes: bool = False) -> None:
        super().__init__()
        self.step: int | None = None  # the one that is being trained
        self.found: Counter[str] = Counter()
        self.reads_back = 0  # asynchronously, in this step
        self.events: list[torch.device] = []  # on whose streams they were recorded
        self.stream, self.order = "compute", list[str]()  # what is launched where, and waits for what
        self.bytes, self.counts_bytes = LiveBytes(), count_bytes

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and its guard takes a third of the time

    @contextmanager
    def of_step(self, step: int) -> Iterator[None]:
        self.step, self.reads_back = step, 0
        self.events.clear()
        self.order.clear()
        try:
            with nullcontext() if self.counts_bytes else self:
                yield
        finally:
            self.step = None

    def note(self, what: str) -> None:
        if self.step is not None:
            self.found[f"{what}, {place_of(traceback.extract_stack())}"] += 1

    def orders(self, what: str) -> None:
        """Once for what goes on."""
        if self.step is not None and self.order[-1:] != [what]:
            self.order.append(what)

    def sees_read(self, tensor: Tensor, what: str) -> None:
        if tensor.device.type == "cuda":
            self.note(what)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.step is not None:
            self._look(func.overloadpacket.__name__, args, kwargs)
        result = func(*args, **kwargs)
        if self.step is not None and any(one.device.type == "cuda" for one in _tensors_in(result)):
            self.orders(self.stream)
        if self.counts_bytes:
            self.bytes.see(result)
        return result

    def _look(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [one for one in args if isinstance(one, Tensor)]
        if name in READS and any(one.device.type == "cuda" for one in tensors):
            self.note(f"{name} of what is on the GPU")
        if name == "_to_copy":
            target = torch.device(kwargs.get("device") or args[0].device)
            non_blocking = bool(kwargs.get("non_blocking"))
            self._look_at_copy(args[0], target, non_blocking=non_blocking, to_pinned=False)
        if name == "copy_":
            non_blocking = bool(args[2] if len(args) > 2 else kwargs.get("non_blocking"))
            to_pinned = args[0].untyped_storage() in _pinned
            self._look_at_copy(args[1], args[0].device, non_blocking=non_blocking, to_pinned=to_pinned)
        if name.startswith("index") and args[0].device.type == "cuda" and isinstance(args[1], list | tuple):
            chosen = [one for one in args[1] if isinstance(one, Tensor)]
            if any(one.device.type == "cpu" for one in chosen):
                self.note("an index that lies in main memory")
            if any(one.dtype in (torch.bool, torch.uint8) for one in chosen):
                self.note("an index by a mask, whose number of rows is read")

    def _look_at_copy(self, source: Tensor, to: torch.device, *, non_blocking: bool, to_pinned: bool) -> None:
        """Copies wait unless they are told not to, and the memory of the host is pinned."""
        if source.device.type == to.type or source.numel() == 0:
            return
        pinned_host = to_pinned if to.type == "cpu" else source.untyped_storage() in _pinned
        if not (non_blocking and pinned_host):
            self.note(f"a blocking copy of {tuple(source.shape)} from {source.device.type} to {to.type}")
        elif to.type == "cpu":
            self.reads_back += 1


def place_of(frames: traceback.StackSummary) -> str:
    """The innermost line of ours."""
    ours = [one for one in frames if "/lora_studio/" in one.filename]
    return f"in {ours[-1].filename.split('/lora_studio/')[1]}:{ours[-1].lineno}" if ours else "in a library"

"""A GPU that is not there: fake tensors have a device, a shape and a dtype, and no numbers.

`pretended_cuda()` has everything inside it believe in cuda:0 and cuda:1. It needs the stub library
(`stub.cpp`) in LD_PRELOAD, so it is for processes of its own (`stub.py` starts them), never for pytest's.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
import torch.nn.functional as F
from audit import Audit, pinned
from torch import Tensor
from torch._subclasses import fake_impls
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

CAPABILITY = (8, 6)  # of a GPU with bfloat16 and the flash kernel
TOTAL_MEMORY = 24 * 2**30


@contextmanager
def pretended_cuda(audit: Audit, capability: tuple[int, int] = CAPABILITY) -> Iterator[None]:
    """Inside, tensors are fake, and what would wait for a GPU is told to the audit."""
    with ExitStack() as stack:
        memory = (*_pinned_memory(), _resized(audit))
        for patched in (*_torch_cuda(audit, capability), *_fake_tensors(audit), *memory):
            stack.enter_context(patched)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        if audit.counts_bytes:  # else it looks on in audited steps alone, since it takes its time
            stack.enter_context(audit)
        yield


def _torch_cuda(audit: Audit, capability: tuple[int, int]) -> Iterator[object]:
    """torch.cuda's questions about the machine, and its events."""
    chosen = {"device": 0}

    def index(device: object = None) -> int:
        found = chosen["device"] if device is None else torch.device(device).index  # type: ignore[call-overload]
        return chosen["device"] if found is None else found

    def set_device(device: torch.device) -> None:
        chosen["device"] = index(device)

    class Stream:
        """One beside the compute stream; what waits for what is noted."""

        def __init__(self, device: object = None, name: str = "copies") -> None:
            self.device, self.name = torch.device("cuda", index(device)), name

        def wait_stream(self, other: Stream) -> None:
            audit.orders(f"{self.name} wait for {other.name}")

        def record_event(self) -> Event:
            event = Event()
            event.record(self)
            return event

        def wait_event(self, event: Event) -> None:
            audit.orders(f"{self.name} waits for {event.number}")

    @contextmanager
    def stream(chosen: Stream) -> Iterator[None]:
        before, audit.stream = audit.stream, chosen.name
        yield
        audit.stream = before

    class Event:
        def record(self, stream: Stream | None = None) -> None:
            self.of_step = audit.step
            audit.events.append((stream or Stream()).device)
            self.number = len(audit.events)
            if stream is not None:
                audit.orders(f"{stream.name} done: {self.number}")

        def synchronize(self) -> None:
            if self.of_step == audit.step:  # the event of an earlier step may be waited for
                audit.note("waits for what it has just launched")

    answers = {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "current_device": index,
        "set_device": set_device,
        "current_stream": lambda device=None: Stream(device, "compute"),
        "Stream": Stream,
        "stream": stream,
        "Event": Event,
        "synchronize": lambda device=None: audit.note("torch.cuda.synchronize"),
        "empty_cache": lambda: None,
        "is_bf16_supported": lambda *_, **__: capability >= (8, 0),
        "get_device_capability": lambda device=None: capability,
        "get_device_name": lambda device=None: "a pretended GPU",
        "mem_get_info": lambda device=None: (TOTAL_MEMORY - audit.bytes.now, TOTAL_MEMORY),
        "memory_allocated": lambda device=None: audit.bytes.now,
        "max_memory_allocated": lambda device=None: audit.bytes.peak,
        "reset_peak_memory_stats": lambda device=None: audit.bytes.restart(),
    }
    yield from (patch.object(torch.cuda, name, answer) for name, answer in answers.items())
    for module in (torch.amp.autocast_mode, torch.cuda.amp.common):
        yield patch.object(module, "amp_definitely_not_available", lambda: False, create=True)


def _fake_tensors(audit: Audit) -> Iterator[object]:
    """What fake tensors refuse, because it needs numbers, a real device or a CUDA build."""

    def number(mode: object, func: object, tensor: FakeTensor) -> bool | int | float:
        """Of one whose number is read: everything is finite, and nothing is zero."""
        audit.sees_read(tensor, "reads a number")
        return True if tensor.dtype == torch.bool else 1.0 if tensor.is_floating_point() else 1

    def tolist(tensor: Tensor) -> object:
        if not isinstance(tensor, FakeTensor):
            return real_tolist(tensor)
        if tensor.constant is not None:
            return real_tolist(tensor.constant)
        audit.sees_read(tensor, "reads a list")
        one = 1.0 if tensor.is_floating_point() else 1
        return one if tensor.dim() == 0 else _nested(list(tensor.shape), one)

    real_tolist = Tensor.tolist
    yield patch.dict(fake_impls.op_implementations_dict, {torch.ops.aten._local_scalar_dense.default: number})
    yield patch.object(Tensor, "tolist", tolist)
    # else torch.tensor(..., device="cuda") is made for real
    yield patch.object(FakeTensorMode, "avoid_device_init", property(lambda mode: True))
    # `module.to` swaps fake parameters in place, so that they stay the same objects as on a real GPU, and
    # asks for weak references to them first, which fake tensors always have
    lenient = types.SimpleNamespace(**{**vars(weakref), "getweakrefs": lambda tensor: []})
    yield patch.object(torch.utils, "weakref", lenient)
    yield patch.object(FakeTensor, "__deepcopy__", _deepcopy, create=True)
    yield patch.object(FakeTensor, "data", property(Tensor.data.__get__, _set_data), create=True)
    yield patch.object(F, "scaled_dot_product_attention", _attention)


def _deepcopy(tensor: FakeTensor, memo: dict[int, Tensor]) -> Tensor:
    """Without its mode, of which torch would make a second one, and crash when that is freed."""
    if id(tensor) not in memo:
        copied = tensor.detach().clone()
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        memo[id(tensor)] = torch.nn.Parameter(copied, tensor.requires_grad) if is_parameter else copied
    return memo[id(tensor)]


def _set_data(tensor: FakeTensor, value: Tensor) -> None:
    """With its device, which torch leaves as it was."""
    Tensor.data.__set__(tensor, value)
    if isinstance(value, FakeTensor):
        tensor.fake_device = value.fake_device


def _nested(shape: list[int], value: float) -> list[object]:
    if len(shape) == 1:
        return [value] * shape[0]
    return [_nested(shape[1:], value) for _ in range(shape[0])]


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """As CUDA chooses its kernels; for fake tensors a CPU build takes the one that keeps all scores."""
    if query.device.type != "cuda":
        options = {"scale": scale, "enable_gqa": enable_gqa}
        return _plain_attention(query, key, value, attn_mask, dropout_p, is_causal, **options)
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    width = query.shape[-1]
    if query.dtype != torch.float32 and width <= 256 and attn_mask is None:
        padding = (0, -width % 8)
        padded = [F.pad(one, padding) if padding[1] else one for one in (query, key, value)]
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(*padded, dropout_p, is_causal, False, scale=scale)[0][..., :width]
    if attn_mask is not None:
        attn_mask = attn_mask.to(query.dtype).expand(*query.shape[:3], key.shape[2])
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    keeps = torch.is_grad_enabled()
    return efficient(query, key, value, attn_mask, keeps, dropout_p, is_causal, scale=scale)[0]


_plain_attention = F.scaled_dot_product_attention


def _resized(audit: Audit) -> object:
    """Memory that is taken from under a tensor, or given back."""
    resize = torch.UntypedStorage.resize_

    def resize_(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
        resize(storage, size)
        audit.bytes.resized(storage)
        return storage

    return patch.object(torch.UntypedStorage, "resize_", resize_)


def _pinned_memory() -> Iterator[object]:
    """Of fake tensors it is a mark on their storage, for the audit."""
    real_empty, real_pin = torch.empty, Tensor.pin_memory

    def empty(*size: object, pin_memory: bool = False, **options: object) -> Tensor:
        made: Tensor = real_empty(*size, **options)  # type: ignore[call-overload]
        return pinned(made) if pin_memory else made

    def pin_memory(tensor: Tensor, device: object = None) -> Tensor:
        return pinned(tensor.clone()) if isinstance(tensor, FakeTensor) else real_pin(tensor)

    yield patch.object(torch, "empty", empty)
    yield patch.object(Tensor, "pin_memory", pin_memory)

"""Lines that make the host wait for a GPU, and some that do not, for the audit to tell apart."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lora_studio.processes import to_device

GPU = torch.device("cuda:0")


def _ones() -> torch.Tensor:
    return torch.ones(4, device=GPU)


WAITS: dict[str, Callable[[], object]] = {
    "a number that is read": lambda: _ones().sum().item(),
    "a condition": lambda: bool(_ones().isfinite().all()),
    "a list that is read": lambda: _ones().tolist(),
    "a copy from pageable memory": lambda: torch.ones(4).to(GPU),
    "a copy from pageable memory that is told not to wait": lambda: torch.ones(4).to(GPU, non_blocking=True),
    "a copy from pinned memory that waits": lambda: torch.ones(4).pin_memory().to(GPU),
    "a copy to main memory": lambda: _ones().cpu(),
    "a tensor of a list": lambda: torch.tensor([1.0, 2.0], device=GPU),
    "an index in main memory": lambda: _ones()[torch.tensor([0, 2])],
    "a list as an index": lambda: _ones()[[0, 2]],
    "a mask as an index": lambda: _ones()[_ones() > 0],
    "a copy into a tensor": lambda: _ones().copy_(torch.ones(4)),
    "a solver that looks whether it can": lambda: torch.linalg.solve(torch.eye(4, device=GPU), _ones()),
    "torch.cuda.synchronize": lambda: torch.cuda.synchronize(),
}
GOES_ON: dict[str, Callable[[], object]] = {
    "a product": lambda: _ones() * 2,
    "a copy from pinned memory": lambda: to_device(torch.ones(4), GPU),
    "an index on the GPU": lambda: _ones()[torch.arange(2, device=GPU)],
    "zeros made there": lambda: torch.zeros((), device=GPU),
}
WAITS_AND_NOT = WAITS | GOES_ON

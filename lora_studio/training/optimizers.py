"""Optimizers by name. All get (groups, weight_decay=...) with a learning rate in each group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lora_studio.registry import Registry

Group = dict[str, Any]  # "params": the tensors, "lr": their learning rate

OPTIMIZERS: Registry[Callable[..., torch.optim.Optimizer]] = Registry(
    "optimizer", {"adamw": "lora_studio.training.optimizers:adamw"}
)


def adamw(groups: Sequence[Group], *, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW, arXiv 1711.05101, in one call for all tensors where torch has that for their device."""
    try:
        return torch.optim.AdamW([dict(group) for group in groups], weight_decay=weight_decay, fused=True)
    except RuntimeError:  # torch asks the tensors' device when it is made
        return torch.optim.AdamW([dict(group) for group in groups], weight_decay=weight_decay)
